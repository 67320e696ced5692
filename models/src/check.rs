//! Explores every state of a model, by as few steps as lead there.

use stateright::{Checker, HasDiscoveries, Model};
use std::fmt::Debug;
use std::hash::Hash;

/// Fails unless every state of `model` is as its properties say, and what they say there is sometimes is there.
///
/// # Panics
///
/// With the steps that lead to a state that is not.
pub fn holds<M>(model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    model.checker().spawn_bfs().join().assert_properties();
}

/// Fails unless some state of `model` is not as `property` says, if the rule `without` is left out of it.
///
/// # Panics
///
/// If there is none.
pub fn breaks<M, W>(model: impl Fn(W) -> M, without: W, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
    W: Copy + Debug,
{
    let found = HasDiscoveries::AnyOf([property].into());
    let checker = model(without).checker().finish_when(found).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "without {without:?}, \"{property}\" holds all the same");
}
