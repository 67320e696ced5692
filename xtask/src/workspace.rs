//! Where things lie: the workspace and what xtask writes under its `target`.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace this xtask belongs to.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Found by cargo's word when it runs us, else by where xtask was built. `LATCHWORK_OUT` moves everything we write
    /// (our own tests use it).
    pub fn locate() -> Self {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf);
        let target = env::var_os("LATCHWORK_OUT")
            .or_else(|| env::var_os("CARGO_TARGET_DIR"))
            .map_or_else(|| root.join("target"), |path| root.join(path));
        Self { root, target }
    }

    /// The folder with the top-level `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder for one kind of build; the kinds are kept apart so that none evicts another.
    pub fn target(&self, kind: &str) -> PathBuf {
        self.target.join(kind)
    }

    /// A file or folder of our own.
    pub fn out(&self, name: &str) -> PathBuf {
        self.target.join("latchwork").join(name)
    }
}
