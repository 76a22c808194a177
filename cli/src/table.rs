//! Tables for terminals.

use std::fmt;

/// Rows under a header; every column is as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// A row; an empty cell is shown as a dash, so that columns can be cut with `awk`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let dashed = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(dashed).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for line in lines() {
            let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "B", "C"]);
        table.row(["x".to_owned(), "wide cell".to_owned(), String::new()]);
        table.row(["longer".to_owned(), String::new(), "é".to_owned()]);
        assert_eq!(table.to_string(), "NAME    B          C\nx       wide cell  -\nlonger  -          é\n");
        assert_eq!(Table::new(&["A"]).to_string(), "A\n", "only a header");
    }
}
