//! The figures as a picture: a panel for each metric, a bar for each system, in SVG without any library.

use std::fmt::Write as _;

use super::expected::{Expected, IDLE, Of, PER_CONNECTION};
use super::loads::{CONNECTIONS, REQUESTS, ROUND_TRIP, THROUGHPUT};
use super::report::Row;

const WIDTH: f64 = 860.0;
/// Where bars begin and how far they may go.
const LEFT: f64 = 170.0;
const SPAN: f64 = 430.0;
const BAR: f64 = 20.0;
const STEP: f64 = 27.0;

/// One bar.
struct Bar<'a> {
    row: &'a Row,
    label: String,
    value: f64,
    /// From least to greatest.
    whisker: [f64; 2],
    text: String,
    /// Marks where it should get to.
    floor: Option<f64>,
}

/// Draws what there is.
pub(super) fn draw(rows: &[Row], expected: &[Expected]) -> String {
    let mut body = String::new();
    let mut top = 64.0;
    for (metric, better) in [
        (THROUGHPUT, "higher is better"),
        (REQUESTS, "higher is better"),
        (CONNECTIONS, "higher is better"),
        (ROUND_TRIP, "lower is better"),
    ] {
        let bars: Vec<Bar<'_>> =
            rows.iter().filter(|row| row.metric == metric).filter_map(|row| ratio(row, expected)).collect();
        top = panel(&mut body, top, &format!("{metric}, × plain ({better})"), &bars, Some(1.0));
    }
    for (title, metrics) in
        [("memory of a daemon, idle, MB", IDLE), ("memory per idle connection, KB", PER_CONNECTION)]
    {
        let bars: Vec<Bar<'_>> = rows
            .iter()
            .filter(|row| metrics.contains(&row.metric))
            .map(|row| plain_value(row, expected))
            .collect();
        top = panel(&mut body, top, &format!("{title} (lower is better)"), &bars, None);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" width=\"{WIDTH}\" \
         height=\"{top:.0}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"13\" \
         fill=\"#1f2937\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"20\" \
         y=\"30\" font-size=\"18\" font-weight=\"600\">Ambit beside plain TCP and an Envoy \
         pair</text>\n<text x=\"20\" y=\"49\" fill=\"#6b7280\">bars: medians; lines across their ends: \
         least and greatest; dashed: plain; triangles: what is expected</text>\n{body}</svg>\n"
    )
}

fn ratio<'a>(row: &'a Row, expected: &[Expected]) -> Option<Bar<'a>> {
    let ratio = row.ratio_to_plain.filter(|_| !row.system.starts_with("plain"))?;
    Some(Bar {
        row,
        label: row.system.to_owned(),
        value: ratio.median,
        whisker: [ratio.min, ratio.max],
        text: format!("{:.2}  ({} {})", ratio.median, thousands(row.value), row.unit),
        floor: floor(row, expected, Of::Ratio),
    })
}

fn plain_value<'a>(row: &'a Row, expected: &[Expected]) -> Bar<'a> {
    let side = row.metric.rsplit_once(": ").map_or("", |(_, side)| side.trim_end_matches("'s daemon"));
    Bar {
        row,
        label: format!("{}, {side}", row.system),
        value: row.value,
        whisker: [row.min, row.max],
        text: format!("{:.1}", row.value),
        floor: floor(row, expected, Of::Value),
    }
}

fn floor(row: &Row, expected: &[Expected], of: Of) -> Option<f64> {
    let found =
        expected.iter().find(|e| e.of == of && e.metric == row.metric && e.system.name() == row.system)?;
    Some(found.floor.unwrap_or(found.aim).limit())
}

/// Returns where the next one begins.
fn panel(body: &mut String, top: f64, title: &str, bars: &[Bar<'_>], plain: Option<f64>) -> f64 {
    if bars.is_empty() {
        return top;
    }
    let most =
        bars.iter().flat_map(|bar| [bar.value, bar.whisker[1], bar.floor.unwrap_or(0.0)]).fold(0.0, f64::max);
    let most = plain.map_or(most, |plain| most.max(plain * 1.05)).max(1e-9);
    let x = |value: f64| LEFT + (value / most).clamp(0.0, 1.0) * SPAN;
    let _ = writeln!(body, "<text x=\"20\" y=\"{:.1}\" font-weight=\"600\">{title}</text>", top + 18.0);
    let first = top + 30.0;
    let bottom = first + STEP * super::count(bars.len() as u64);
    for (index, bar) in bars.iter().enumerate() {
        let y = first + STEP * super::count(index as u64);
        let middle = y + BAR / 2.0;
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>",
            LEFT - 10.0,
            middle + 4.5,
            bar.label,
            x(bar.value) - LEFT,
            colour(bar.row.system)
        );
        let [low, high] = bar.whisker.map(x);
        let _ = writeln!(
            body,
            "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\" \
             stroke=\"#111827\" stroke-width=\"1.2\"/>",
            middle - 4.0,
            middle - 4.0
        );
        if let Some(at) = bar.floor.map(x) {
            let tip = y + BAR - 1.0;
            let _ = writeln!(body, "<path d=\"M{at:.1} {tip:.1}l-5 7h10z\" fill=\"#b91c1c\"/>");
        }
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + SPAN + 16.0,
            middle + 4.5,
            bar.text
        );
    }
    if let Some(at) = plain.map(x) {
        let _ = writeln!(
            body,
            "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#6b7280\" stroke-dasharray=\"4 3\"/>",
            first - 3.0,
            bottom - 3.0
        );
    }
    bottom + 14.0
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
    fn numbers() {
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
