//! Which lines of source were executed. Pure: LCOV's text in, a table and the lines that were not out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::table::Table;

/// Files that make a sum: what it is called, and where they are below the folder of the sources. A file counts where it fits first.
pub type Sum = (&'static str, &'static str);

/// The lines of a file that can be executed, and whether each was.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Below the folder of the sources.
    name: String,
    lines: BTreeMap<u32, bool>,
}

impl File {
    fn covered(&self) -> usize {
        self.lines.values().filter(|&&covered| covered).count()
    }

    /// The lines that were not executed, as ranges; lines between them that cannot be executed do not part them.
    fn missed(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        let mut after_missed = false;
        for (&line, &covered) in &self.lines {
            match ranges.last_mut() {
                Some(range) if !covered && after_missed => range.1 = line,
                _ if !covered => ranges.push((line, line)),
                _ => {}
            }
            after_missed = !covered;
        }
        ranges
    }
}

/// Reads LCOV's text: the files below `folder` that are not tests, each up to the tests that close it.
pub fn read(lcov: &str, folder: &Path, source: impl Fn(&Path) -> Option<String>) -> Vec<File> {
    let mut files: BTreeMap<PathBuf, BTreeMap<u32, bool>> = BTreeMap::new();
    let mut current = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            current = Some(PathBuf::from(path));
        } else if let (Some(path), Some((line, count))) = (&current, data(line)) {
            *files.entry(path.clone()).or_default().entry(line).or_default() |= count > 0;
        }
    }
    let code = files.into_iter().filter_map(|(path, mut lines)| {
        let name = path.strip_prefix(folder).ok()?.to_str()?.to_owned();
        if is_test(&name) {
            return None;
        }
        let end = source(&path).and_then(|text| tests_at(&text)).unwrap_or(u32::MAX);
        lines.retain(|&line, _| line < end);
        (!lines.is_empty()).then_some(File { name, lines })
    });
    code.collect()
}

/// `DA:LINE,COUNT`
fn data(line: &str) -> Option<(u32, u64)> {
    let (line, count) = line.strip_prefix("DA:")?.split_once(',')?;
    Some((line.parse().ok()?, count.parse().ok()?))
}

fn is_test(name: &str) -> bool {
    let mut parts = name.trim_end_matches(".rs").split('/');
    parts.any(|part| part == "tests" || part == "testing" || part.ends_with("_tests"))
}

/// The line at which a file's own tests begin.
fn tests_at(source: &str) -> Option<u32> {
    let line = source.lines().position(|line| line == "mod tests {")?;
    u32::try_from(line + 1).ok()
}

/// A row for each file, the sums, and the lines that no test reaches.
pub fn report(files: &[File], sums: &[Sum]) -> String {
    let mut table = Table::new(&["file", "lines", "reached", ""]);
    let row = |name: &str, lines: usize, covered: usize| {
        let share = if lines == 0 { 100.0 } else { covered as f64 * 100.0 / lines as f64 };
        vec![name.to_owned(), lines.to_string(), covered.to_string(), format!("{share:.1} %")]
    };
    for file in files {
        table.row(row(&file.name, file.lines.len(), file.covered()));
    }
    let sum_of = |file: &File| sums.iter().position(|(_, folder)| file.name.starts_with(folder));
    for (number, (name, _)) in sums.iter().enumerate() {
        let of = || files.iter().filter(|file| sum_of(file) == Some(number));
        table.row(row(name, of().map(|file| file.lines.len()).sum(), of().map(File::covered).sum()));
    }
    let mut text = format!("{table}\nlines that no test reaches\n");
    for file in files {
        let missed = file.missed();
        if missed.is_empty() {
            continue;
        }
        let ranges = missed.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {}: {}", file.name, ranges.collect::<Vec<_>>().join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LCOV: &str = "\
SF:/w/mm/src/fault.rs
FN:1,f
DA:1,5
DA:2,0
DA:4,0
DA:7,1
DA:8,0
DA:20,1
end_of_record
SF:/w/mm/src/fault.rs
DA:8,3
DA:9,0
end_of_record
SF:/w/mm/src/fault/tests.rs
DA:1,1
end_of_record
SF:/w/mm/src/machine/sim/walk.rs
DA:3,1
end_of_record
SF:/rust/core/src/option.rs
DA:1,1
end_of_record
";

    fn files() -> Vec<File> {
        let source = |path: &Path| path.ends_with("fault.rs").then(|| "\n".repeat(14) + "mod tests {\n");
        read(LCOV, Path::new("/w/mm/src"), source)
    }

    #[test]
    fn lines_of_a_file_add_up_and_tests_are_left_out() {
        let files = files();
        assert_eq!(
            files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(),
            ["fault.rs", "machine/sim/walk.rs"]
        );
        assert_eq!(files[0].lines, [(1, true), (2, false), (4, false), (7, true), (8, true), (9, false)].into());
        assert_eq!(files[0].missed(), [(2, 4), (9, 9)]);
    }

    #[test]
    fn the_report_sums_up_mm_and_its_equipment_and_lists_what_is_missed() {
        let report = report(&files(), &[("the simulated machine", "machine/sim/"), ("mm", "")]);
        for part in ["fault.rs", "50.0 %", "lines that no test reaches\n  fault.rs: 2-4, 9\n"] {
            assert!(report.contains(part), "{part:?} in {report}");
        }
        let row = |name: &str| report.lines().find(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
        assert!(row("mm").contains('6') && row("mm").contains('3'), "{report}");
        assert!(row("the simulated").contains("100.0 %"), "{report}");
    }

    #[test]
    fn tests_are_known_by_their_files_names() {
        for name in ["fault/tests.rs", "fault/tests/races.rs", "pgtable/pae_tests.rs", "testing.rs", "sync/testing.rs"]
        {
            assert!(is_test(name), "{name}");
        }
        for name in ["fault.rs", "sync/test_and_set.rs", "machine/sim/mod.rs"] {
            assert!(!is_test(name), "{name}");
        }
    }
}
