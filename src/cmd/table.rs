//! Columns for a terminal: as wide as their widest cell, two spaces apart.

/// Rows of one width.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Lines, each indented by two spaces. Columns without a cell below their head are left out.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let cell = |row: &Vec<String>, at: usize| row.get(at).cloned().unwrap_or_default();
        let is_used = |at: &usize| self.rows.iter().skip(1).any(|row| !cell(row, *at).is_empty());
        let used: Vec<usize> = (0..columns).filter(is_used).collect();
        let width = |at: usize| self.rows.iter().map(|row| cell(row, at).chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = used.iter().map(|at| width(*at)).collect();
        let line = |row: &Vec<String>| {
            let cells = std::iter::zip(&used, &widths).map(|(at, width)| format!("{:width$}", cell(row, *at)));
            format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells_and_empty_ones_are_left_out() {
        let mut table = Table::new(&["A", "EMPTY", "LONG HEAD"]);
        table.row(["größer".to_owned(), String::new(), "x".to_owned()]);
        table.row(["b".to_owned()]);

        assert_eq!(table.text(), "  A       LONG HEAD\n  größer  x\n  b\n");
    }
}
