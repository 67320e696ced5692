//! Columns that line up.

use std::fmt;

/// Rows under heads. The first column is left-aligned, the others right-aligned.
pub struct Table {
    rows: Vec<Vec<String>>,
    left: bool,
}

impl Table {
    /// An empty table.
    pub fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()], left: false }
    }

    /// Aligns every column to the left, for text.
    pub fn left_aligned(&mut self) {
        self.left = true;
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let width = *width;
                line +=
                    &if column == 0 || self.left { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["phase", "n"]);
        table.row(vec!["a".to_owned(), "1,000".to_owned()]);
        assert_eq!(table.to_string(), "  phase      n\n  a      1,000\n");
    }
}
