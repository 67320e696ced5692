//! The tables of `cargo xtask bench`: the rounds of each contest as one row, and the rows side by side.

use std::collections::BTreeMap;
use std::fmt::Write;

use protocol::record::Phase;
use serde::Serialize;

use super::figures::{grouped, median, nanoseconds, number};
use super::table::Table;

/// What tells one contest from another.
const KEYS: [&str; 4] = ["cpus", "rounds", "polls", "descriptors"];
/// Figures whose largest value counts; of the others it is the median.
const LARGEST: [&str; 1] = ["wait_max"];
/// The contestant that the others are compared with.
const DEFAULT: &str = "ticket";

/// One contestant in one contest, over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The contestant: an algorithm, a form of storage.
    pub name: String,
    /// What tells its contest from the others: CPUs, waiting rule, descriptors.
    pub contest: BTreeMap<&'static str, u64>,
    /// How many rounds were held.
    pub rounds: usize,
    /// Turns (or pairs) per second: the median.
    pub rate: f64,
    /// Least and largest rate.
    pub range: (f64, f64),
    /// The other figures: medians, and the longest of the waits.
    pub figures: BTreeMap<String, f64>,
}

/// A contestant, and what tells its contest from others.
type Key<'a> = (&'a str, BTreeMap<&'static str, u64>);

/// The rounds of each contestant in each contest together, in the order in which they first came.
pub fn rows(phases: &[Phase]) -> Vec<Row> {
    let mut groups: Vec<(Key<'_>, Vec<&Phase>)> = Vec::new();
    for phase in phases {
        let contest = KEYS.iter().filter_map(|&key| Some((key, super::figures::count(&phase.figures, key)?))).collect();
        let key = (phase.phase.as_str(), contest);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(phase),
            None => groups.push((key, vec![phase])),
        }
    }
    groups.into_iter().filter_map(|((name, contest), members)| row(name, contest, &members)).collect()
}

fn row(name: &str, contest: BTreeMap<&'static str, u64>, members: &[&Phase]) -> Option<Row> {
    let rates: Vec<f64> = members.iter().filter_map(|phase| rate(phase)).collect();
    let mut figures = BTreeMap::new();
    for key in members.first()?.figures.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        let values: Vec<f64> = members.iter().filter_map(|phase| number(&phase.figures, key)).collect();
        let largest = values.iter().copied().fold(0.0, f64::max);
        let value = if LARGEST.contains(&key.as_str()) { Some(largest) } else { median(&values) };
        figures.extend(value.map(|value| (key.clone(), value)));
    }
    let range = (rates.iter().copied().fold(f64::INFINITY, f64::min), rates.iter().copied().fold(0.0, f64::max));
    Some(Row { name: name.to_owned(), contest, rounds: members.len(), rate: median(&rates)?, range, figures })
}

/// Turns or pairs per second.
fn rate(phase: &Phase) -> Option<f64> {
    let done = number(&phase.figures, "turns").or_else(|| number(&phase.figures, "pairs"))?;
    let time = number(&phase.figures, "nanoseconds")?;
    (time > 0.0).then(|| done * 1e9 / time)
}

impl Row {
    fn key(&self, key: &str) -> u64 {
        self.contest.get(key).copied().unwrap_or(0)
    }

    fn figure(&self, key: &str) -> f64 {
        self.figures.get(key).copied().unwrap_or(0.0)
    }
}

fn whole(value: f64) -> String {
    grouped(value.round() as u64)
}

fn ratio(one: f64, other: f64) -> String {
    if other > 0.0 { format!("{:.2}", one / other) } else { "-".to_owned() }
}

/// Algorithms by CPUs, each with its ratio to the default one.
pub fn locks(rows: &[Row]) -> String {
    let mut table = Table::new(&[
        "lock",
        "CPUs",
        "turns/s",
        "(range)",
        "ratio",
        "longest wait",
        "ratio",
        "mean wait",
        "waited",
        "halts",
        "kicks",
        "least/most",
    ]);
    for row in rows {
        let default = rows.iter().find(|other| other.name == DEFAULT && other.contest == row.contest);
        let against =
            |of: fn(&Row) -> f64| default.map_or_else(|| "-".to_owned(), |default| ratio(of(row), of(default)));
        table.row(vec![
            row.name.clone(),
            row.key("cpus").to_string(),
            whole(row.rate),
            format!("{} - {}", whole(row.range.0), whole(row.range.1)),
            against(|row| row.rate),
            nanoseconds(row.figure("wait_max")),
            against(|row| row.figure("wait_max")),
            nanoseconds(row.figure("wait_mean")),
            format!("{} %", ratio(row.figure("waited") * 100.0, row.figure("turns"))),
            whole(row.figure("halts")),
            whole(row.figure("kicks")),
            ratio(row.figure("least"), row.figure("most")),
        ]);
    }
    table.to_string()
}

/// Rounds outside the queue down, polls across: turns per second, then the longest waits.
pub fn waiting(rows: &[Row]) -> String {
    let mut polls: Vec<u64> = rows.iter().map(|row| row.key("polls")).collect();
    polls.sort_unstable();
    polls.dedup();
    let mut outside: Vec<u64> = rows.iter().map(|row| row.key("rounds")).collect();
    outside.sort_unstable();
    outside.dedup();
    let mut text = String::new();
    type Cell = fn(&Row) -> String;
    let kinds: [(&str, Cell); 3] = [
        ("turns/s", |row| whole(row.rate)),
        ("longest wait", |row| nanoseconds(row.figure("wait_max"))),
        ("mean wait", |row| nanoseconds(row.figure("wait_mean"))),
    ];
    for (kind, cell) in kinds {
        let heads: Vec<String> = polls.iter().map(|polls| format!("{polls} polls")).collect();
        let mut table = Table::new(&std::iter::once(kind).chain(heads.iter().map(String::as_str)).collect::<Vec<_>>());
        for &rounds in &outside {
            let at = |&polls: &u64| {
                let found = rows.iter().find(|row| row.key("rounds") == rounds && row.key("polls") == polls);
                found.map_or_else(|| "-".to_owned(), cell)
            };
            table.row(std::iter::once(format!("{rounds} rounds")).chain(polls.iter().map(at)).collect());
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{table}");
    }
    text
}

/// Forms of storage by number of descriptors.
pub fn storage(rows: &[Row]) -> String {
    let mut table = Table::new(&["lock", "descriptors", "ns per lock+unlock", "(range)", "ratio"]);
    for row in rows {
        let inline = rows.iter().find(|other| other.name == "inline" && other.contest == row.contest);
        table.row(vec![
            row.name.clone(),
            grouped(row.key("descriptors")),
            format!("{:.1}", 1e9 / row.rate),
            format!("{:.1} - {:.1}", 1e9 / row.range.1, 1e9 / row.range.0),
            inline.map_or_else(|| "-".to_owned(), |inline| ratio(inline.rate, row.rate)),
        ]);
    }
    let first = rows.first();
    let bytes = |key| first.map_or(0.0, |row| row.figure(key));
    format!("{table}  a lock takes {} bytes, a frame's descriptor {}\n", bytes("lock_bytes"), bytes("page_bytes"))
}

/// What is taken away, by CPUs in the address space.
pub fn tables(rows: &[Row]) -> String {
    let mut table =
        Table::new(&["taken away", "CPUs in it", "each takes", "(range)", "ratio", "interrupted", "fault before"]);
    for row in rows {
        let page = rows.iter().find(|other| other.name == "page" && other.contest == row.contest);
        table.row(vec![
            row.name.clone(),
            row.key("cpus").to_string(),
            nanoseconds(1e9 / row.rate),
            format!("{} - {}", nanoseconds(1e9 / row.range.1), nanoseconds(1e9 / row.range.0)),
            page.map_or_else(|| "-".to_owned(), |page| ratio(page.rate, row.rate)),
            ratio(row.figure("interrupted"), row.figure("turns")),
            nanoseconds(row.figure("fault_nanoseconds") / row.figure("turns").max(1.0)),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use protocol::Record;

    use super::*;

    fn phase(name: &str, cpus: u64, turns: u64, wait_max: u64) -> Phase {
        let json = format!(
            r#"phase {{"workload":"locks","phase":"{name}","cpus":{cpus},"rounds":8,"polls":512,"turns":{turns},"nanoseconds":1000000000,"waited":{},"wait_max":{wait_max},"least":1,"most":2}}"#,
            turns / 4
        );
        let Some(Record::Phase(phase)) = Record::parse(&json) else { panic!("{json}") };
        phase
    }

    #[test]
    fn rounds_of_one_contest_are_one_row_of_medians_and_the_longest_wait() {
        let phases = [phase("ticket", 2, 300, 5), phase("fifo", 2, 100, 7), phase("ticket", 2, 1, 9_000)];
        let rows = rows(&[&phases[..], &[phase("ticket", 2, 500, 6), phase("ticket", 8, 4, 4)]].concat());
        assert_eq!(
            rows.iter().map(|row| (row.name.as_str(), row.key("cpus"))).collect::<Vec<_>>(),
            [("ticket", 2), ("fifo", 2), ("ticket", 8)]
        );
        assert_eq!((rows[0].rounds, rows[0].rate, rows[0].range), (3, 300.0, (1.0, 500.0)));
        assert_eq!(rows[0].figure("wait_max"), 9_000.0);
    }

    #[test]
    fn an_algorithm_is_compared_with_the_default_at_the_same_cpus() {
        let rows = rows(&[phase("ticket", 2, 400, 1000), phase("mcs", 2, 100, 3000), phase("ticket", 8, 1, 1)]);
        let table = locks(&rows);
        let mcs = table.lines().find(|line| line.contains("mcs")).unwrap();
        assert!(mcs.contains("0.25") && mcs.contains("3.00") && mcs.contains("25.00 %"), "{table}");
    }

    #[test]
    fn a_waiting_rule_that_was_not_tried_leaves_a_dash() {
        let table = waiting(&rows(&[phase("ticket", 8, 4_321, 1_500_000)]));
        assert!(table.contains("8 rounds") && table.contains("512 polls"), "{table}");
        assert!(table.contains("4,321") && table.contains("1.5 ms"), "{table}");
        assert_eq!(waiting(&[]).lines().filter(|line| !line.trim().is_empty()).count(), 3);
    }

    #[test]
    fn tables_are_compared_with_a_page_of_as_many_cpus() {
        let phase = |what: &str, cpus: u64, nanoseconds: u64| {
            let json = format!(
                r#"phase {{"workload":"tables","phase":"{what}","cpus":{cpus},"turns":10,"nanoseconds":{nanoseconds},"interrupted":70,"fault_nanoseconds":90000}}"#
            );
            let Some(Record::Phase(phase)) = Record::parse(&json) else { panic!("{json}") };
            phase
        };
        let table = tables(&rows(&[phase("page", 1, 10_000), phase("page", 8, 1), phase("pte-table", 1, 35_000)]));
        let line = table.lines().find(|line| line.contains("pte-table")).unwrap();
        assert!(
            line.contains("3.5 µs") && line.contains("3.50") && line.contains("7.00") && line.contains("9.0 µs"),
            "{table}"
        );
    }

    #[test]
    fn storage_is_in_nanoseconds_and_names_the_sizes() {
        let phase = |form: &str, nanoseconds: u64| {
            let json = format!(
                r#"phase {{"workload":"storage","phase":"{form}","descriptors":16384,"pairs":1000,"nanoseconds":{nanoseconds},"lock_bytes":4,"page_bytes":64}}"#
            );
            let Some(Record::Phase(phase)) = Record::parse(&json) else { panic!("{json}") };
            phase
        };
        let table = storage(&rows(&[phase("inline", 20_000), phase("pointer", 30_000)]));
        for part in ["16,384", "20.0", "30.0", "1.50", "a lock takes 4 bytes, a frame's descriptor 64"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
