//! Rules that a build with the feature `sabotage` can break, so that the tests are seen to notice.
//!
//! A sabotage is a line or two where the rule is kept: `sabotaged!("name")`, `false` in every other build. The build has all of
//! them and breaks at most one rule, which is chosen when it runs: on the host by the environment, in the kernel by its
//! command line. What each stands for and which tests must fail says the table of `cargo xtask sabotage`.

/// Whether the rule that the sabotage of this name stands for is to be broken. A constant, but for builds with the feature.
#[cfg(not(feature = "sabotage"))]
#[macro_export]
macro_rules! sabotaged {
    ($name:literal) => {
        false
    };
}

/// Whether the rule that the sabotage of this name stands for is to be broken.
#[cfg(feature = "sabotage")]
#[macro_export]
macro_rules! sabotaged {
    ($name:literal) => {
        $crate::sabotage::is_chosen(const { $crate::sabotage::number_of($name) })
    };
}

#[cfg(feature = "sabotage")]
pub use chosen::{choose, is_chosen, number_of};

#[cfg(feature = "sabotage")]
mod chosen {
    use crate::sync::atomic::Ordering;
    use crate::sync::atomic::plain::AtomicUsize;

    /// The number of the sabotage that was chosen; 0 is none.
    static CHOSEN: AtomicUsize = AtomicUsize::new(0);

    /// A number for a name (FNV-1a), since a number can be compared in one access. `xtask` checks that no two are the same.
    pub const fn number_of(name: &str) -> usize {
        let mut number: u32 = 0x811c_9dc5;
        let mut index = 0;
        while index < name.len() {
            number = (number ^ name.as_bytes()[index] as u32).wrapping_mul(0x0100_0193);
            index += 1;
        }
        number as usize
    }

    /// From now on the rule that the sabotage `name` stands for is broken; an unknown one breaks none.
    pub fn choose(name: &str) {
        // Relaxed, here and below: before any other CPU runs, or by a test's own program.
        CHOSEN.store(number_of(name), Ordering::Relaxed);
    }

    /// Whether the sabotage of this number was chosen.
    pub fn is_chosen(number: usize) -> bool {
        #[cfg(any(test, feature = "sim", loom))]
        read_environment();
        CHOSEN.load(Ordering::Relaxed) == number
    }

    /// Chooses, once, what the environment names.
    #[cfg(any(test, feature = "sim", loom))]
    fn read_environment() {
        static READ: std::sync::Once = std::sync::Once::new();
        READ.call_once(|| {
            if let Ok(name) = std::env::var("LATCHWORK_SABOTAGE") {
                choose(&name);
            }
        });
    }
}
