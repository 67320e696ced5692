//! Figures of a phase, read and written for people.

use protocol::record::{Figures, Phase};

/// Keys the report has a place of its own for (`docs/harness.md`).
const KNOWN: [&str; 11] = [
    "faults",
    "nanoseconds",
    "acquired",
    "waited",
    "wait_mean",
    "wait_max",
    "halts",
    "kicks",
    "shootdowns",
    "physical_start",
    "physical_end",
];

/// A figure.
pub fn number(figures: &Figures, key: &str) -> Option<f64> {
    figures.get(key)?.as_f64()
}

/// A figure that counts something.
pub fn count(figures: &Figures, key: &str) -> Option<u64> {
    figures.get(key)?.as_u64()
}

/// Faults per second.
pub fn rate(figures: &Figures) -> Option<f64> {
    let (faults, time) = (number(figures, "faults")?, number(figures, "nanoseconds")?);
    (time > 0.0).then(|| faults * 1e9 / time)
}

/// One figure in percent of another.
pub fn share(figures: &Figures, part: &str, whole: &str) -> Option<f64> {
    let (part, whole) = (number(figures, part)?, number(figures, whole)?);
    (whole > 0.0).then(|| part * 100.0 / whole)
}

/// Where in physical memory the pages of all phases were, in bytes: the first, and the first beyond.
pub fn physical_range(phases: &[Phase]) -> Option<(u64, u64)> {
    let all = |key| phases.iter().filter_map(move |phase| count(&phase.figures, key));
    Some((all("physical_start").min()?, all("physical_end").max()?))
}

/// Numeric keys the report has no place for, in the order they first came.
pub fn unknown_keys(phases: &[Phase]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (key, value) in phases.iter().flat_map(|phase| &phase.figures) {
        if value.is_number() && !KNOWN.contains(&key.as_str()) && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// `1234567` as `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds in the unit that suits them.
pub fn nanoseconds(time: f64) -> String {
    match time {
        time if time < 1e3 => format!("{time:.0} ns"),
        time if time < 1e6 => format!("{:.1} µs", time / 1e3),
        time if time < 1e9 => format!("{:.1} ms", time / 1e6),
        time => format!("{:.2} s", time / 1e9),
    }
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => values.get(middle).copied(),
        _ => Some((values.get(middle - 1)? + values.get(middle)?) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(nanoseconds(12.0), "12 ns");
        assert_eq!(nanoseconds(1_500_000.0), "1.5 ms");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
