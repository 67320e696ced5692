//! The places that allocate, as the source of `mm` has them.
//!
//! `Injection::should_fail` allocates, so to say; so does a function that calls one that does and hands its caller's place on
//! (`track_caller`). Whoever calls such a function and does not hand on is a place: it is there that a failure is dealt with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A line of the source: the file, from `mm/src` on, and the line's number.
pub type Place = (String, u32);

/// Functions that hand on the failures of more than one allocation. A test that sees one of them fail has not seen the others,
/// so their number is no accident: a table's frame and its constructor, each by level; a lock, by the lock's size; and the two
/// steps of a helper, walked by `pgtable::install::tests`.
const OF_SEVERAL: &[(&str, &str, usize)] = &[
    ("pgtable/alloc.rs", "allocate", 4),
    ("pgtable/install.rs", "get_locked_pte", 2),
    ("pgtable/ptlock.rs", "ptlock_alloc", 2),
];

/// A function of the source, with its body and all its closures.
struct Function {
    file: String,
    name: String,
    /// Whether it hands on where it was called.
    hands_on: bool,
    /// Numbers and texts of its lines.
    lines: Vec<(u32, String)>,
}

impl Function {
    /// The lines on which it calls one of `names`.
    fn calls<'f>(&'f self, names: &'f BTreeSet<String>) -> impl Iterator<Item = u32> + 'f {
        self.lines.iter().flat_map(|(number, text)| called(text).filter(|name| names.contains(*name)).map(|_| *number))
    }
}

/// Whether a file is no part of `mm` as it runs.
pub fn is_of_tests(file: &str) -> bool {
    let mut parts = file.trim_end_matches(".rs").split('/');
    parts.any(|part| part.ends_with("tests") || ["testing", "sim", "sweep", "sabotage"].contains(&part))
}

/// All places.
///
/// # Panics
///
/// If two of them cannot be told apart, or a failure that is handed on hides another.
pub fn all() -> BTreeSet<Place> {
    let functions = functions();
    let mut names = BTreeSet::from(["should_fail".to_owned()]);
    loop {
        let known = names.len();
        let handing = functions.iter().filter(|function| function.hands_on && function.calls(&names).next().is_some());
        let more: Vec<_> = handing.map(|function| function.name.clone()).collect();
        names.extend(more);
        if names.len() == known {
            break;
        }
    }
    let mut places = BTreeSet::new();
    for function in &functions {
        let calls: Vec<u32> = function.calls(&names).collect();
        if !function.hands_on {
            for line in calls {
                assert!(places.insert((function.file.clone(), line)), "{}:{line} allocates twice", function.file);
            }
            continue;
        }
        let several = OF_SEVERAL.iter().find(|(file, name, _)| *file == function.file && *name == function.name);
        let expected = several.map_or(calls.len().min(1), |(_, _, count)| *count);
        assert_eq!(calls.len(), expected, "{} in {} hands on the failures of {calls:?}", function.name, function.file);
    }
    places
}

fn functions() -> Vec<Function> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    read(&root, &mut sources);
    let mut functions = Vec::new();
    for (path, text) in &sources {
        let file = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
        if !is_of_tests(&file) {
            functions.extend(functions_of(&file, text));
        }
    }
    functions
}

fn read(folder: &Path, sources: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).expect("the source of mm") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            sources.insert(path, text);
        }
    }
}

fn functions_of(file: &str, text: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    let mut hands_on = false;
    let mut lines = text.lines().zip(1..).peekable();
    while let Some((line, number)) = lines.next() {
        let code = line.split("//").next().unwrap_or_default().trim();
        if code.starts_with("#[cfg(")
            && code.contains("test")
            && lines.peek().is_some_and(|(next, _)| next.ends_with('{'))
        {
            // The tests of the file, at its end.
            break;
        }
        hands_on |= code.starts_with("#[") && code.contains("track_caller");
        if let Some(name) = function_named(code) {
            let (file, name) = (file.to_owned(), name.to_owned());
            functions.push(Function { file, name, hands_on: std::mem::take(&mut hands_on), lines: Vec::new() });
        }
        if let Some(function) = functions.last_mut() {
            function.lines.push((number, code.to_owned()));
        }
    }
    functions
}

/// The name of the function that begins on this line.
fn function_named(code: &str) -> Option<&str> {
    let (before, after) = code.split_once("fn ")?;
    let is_qualifier =
        |word: &str| word.starts_with("pub") || word.ends_with(')') || ["const", "unsafe"].contains(&word);
    before.split_whitespace().all(is_qualifier).then(|| leading_word(after))
}

/// The names of the functions that are called on this line.
fn called(code: &str) -> impl Iterator<Item = &str> {
    code.char_indices().filter_map(move |(at, _)| {
        let before = &code[..at];
        let word = leading_word(&code[at..]);
        let is_whole = !word.is_empty() && !before.ends_with(is_of_word) && !before.ends_with("fn ");
        let after = &code[at + word.len()..];
        (is_whole && (after.starts_with('(') || after.starts_with("::<"))).then_some(word)
    })
}

fn leading_word(text: &str) -> &str {
    &text[..text.find(|character| !is_of_word(character)).unwrap_or(text.len())]
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[test]
fn functions_and_calls_are_found_in_the_source() {
    let text = "
        /// alloc() in a comment
        #[cfg_attr(test, track_caller)]
        pub(crate) fn alloc<T>(&self) -> T {
            self.injection.should_fail(Site::Slab); // alloc()
        }

        unsafe fn realloc(kind: fn()) {
            let x = a.alloc::<u8>().map(|_| zalloc(y)).alloc(z);
        }

        #[cfg(all(test, not(loom)))]
        mod tests {
            fn never() { alloc() }
    ";
    let functions = functions_of("slab.rs", text);
    let names = BTreeSet::from(["alloc".to_owned(), "should_fail".to_owned()]);
    let found: Vec<(&str, bool, Vec<u32>)> = functions
        .iter()
        .map(|function| (&*function.name, function.hands_on, function.calls(&names).collect()))
        .collect();
    assert_eq!(found, [("alloc", true, vec![5]), ("realloc", false, vec![9, 9])]);
}
