//! The figures as a picture: a panel for each metric, a bar for each system.

use ambit_harness::chart::{self, Bar, Panel};

use super::expected::{Expected, IDLE, Of, PER_CONNECTION};
use super::loads::{CONNECTIONS, REQUESTS, ROUND_TRIP, THROUGHPUT};
use super::row::Row;

/// Draws what there is.
pub(super) fn draw(rows: &[Row], expected: &[Expected]) -> String {
    let mut panels = Vec::new();
    for (metric, better) in [
        (THROUGHPUT, "higher is better"),
        (REQUESTS, "higher is better"),
        (CONNECTIONS, "higher is better"),
        (ROUND_TRIP, "lower is better"),
    ] {
        let rows = rows.iter().filter(|row| row.metric == metric);
        panels.push(Panel {
            title: format!("{metric}, × plain ({better})"),
            bars: rows.filter_map(|row| ratio(row, expected)).collect(),
            reference: Some(1.0),
        });
    }
    for (title, metrics) in
        [("memory of a daemon, idle, MB", IDLE), ("memory per idle connection, KB", PER_CONNECTION)]
    {
        let rows = rows.iter().filter(|row| metrics.contains(&row.metric));
        panels.push(Panel {
            title: format!("{title} (lower is better)"),
            bars: rows.map(|row| plain_value(row, expected)).collect(),
            reference: None,
        });
    }
    let note = "bars: medians; lines across their ends: least and greatest; dashed: plain; triangles: what \
                is expected";
    chart::draw("Ambit beside plain TCP and an Envoy pair", note, &panels)
}

fn ratio(row: &Row, expected: &[Expected]) -> Option<Bar> {
    let ratio = row.ratio_to_plain.filter(|_| !row.system.starts_with("plain"))?;
    Some(Bar {
        label: row.system.to_owned(),
        value: ratio.median,
        text: format!("{:.2}  ({} {})", ratio.median, thousands(row.value), row.unit),
        colour: colour(row.system),
        range: Some([ratio.min, ratio.max]),
        mark: floor(row, expected, Of::Ratio),
    })
}

fn plain_value(row: &Row, expected: &[Expected]) -> Bar {
    let side = row.metric.rsplit_once(": ").map_or("", |(_, side)| side.trim_end_matches("'s daemon"));
    Bar {
        label: format!("{}, {side}", row.system),
        value: row.value,
        text: format!("{:.1}", row.value),
        colour: colour(row.system),
        range: Some([row.min, row.max]),
        mark: floor(row, expected, Of::Value),
    }
}

fn floor(row: &Row, expected: &[Expected], of: Of) -> Option<f64> {
    let found =
        expected.iter().find(|e| e.of == of && e.metric == row.metric && e.system.name() == row.system)?;
    Some(found.floor.unwrap_or(found.aim).limit())
}

fn colour(system: &str) -> &'static str {
    match system {
        "tunnel" => "#3b82f6",
        "direct" => "#22a565",
        _ => "#b6bcc6",
    }
}

/// 92000 as 92,000; small figures with one digit after the point.
fn thousands(value: f64) -> String {
    if value < 1000.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted() {
        let rows = [
            (3.07, "3.1"),
            (999.0, "999.0"),
            (1000.0, "1,000"),
            (92_345.6, "92,346"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, expected) in rows {
            assert_eq!(thousands(value), expected);
        }
    }
}
