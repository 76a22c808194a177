//! Bar charts in SVG: a panel for each metric, a bar for each thing that is compared.
//!
//! Entry point: [`draw`].

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
/// Where bars begin.
const LEFT: f64 = 170.0;
/// How long the longest bar is.
const SPAN: f64 = 430.0;
/// How high a bar is.
const BAR: f64 = 20.0;
/// From one bar to the next.
const STEP: f64 = 27.0;

/// Bars with one scale.
#[derive(Clone, Debug)]
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
    /// A value for a dashed line through all bars.
    pub reference: Option<f64>,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Before the bar.
    pub label: String,
    pub value: f64,
    /// Behind the bar.
    pub text: String,
    /// In any of SVG's notations.
    pub colour: &'static str,
    /// The least and the greatest value, as a line across the bar's end.
    pub range: Option<[f64; 2]>,
    /// A value for a triangle below the bar.
    pub mark: Option<f64>,
}

/// Draws the panels that have bars, below each other.
pub fn draw(title: &str, note: &str, panels: &[Panel]) -> String {
    let mut body = String::new();
    let mut top = 64.0;
    for panel in panels.iter().filter(|panel| !panel.bars.is_empty()) {
        top = draw_panel(&mut body, top, panel);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" width=\"{WIDTH}\" \
         height=\"{top:.0}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"13\" \
         fill=\"#1f2937\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"20\" \
         y=\"30\" font-size=\"18\" font-weight=\"600\">{title}</text>\n<text x=\"20\" y=\"49\" \
         fill=\"#6b7280\">{note}</text>\n{body}</svg>\n"
    )
}

/// Returns where the next panel begins.
fn draw_panel(body: &mut String, top: f64, panel: &Panel) -> f64 {
    let values = |bar: &Bar| {
        let [_, most] = bar.range.unwrap_or_default();
        [bar.value, most, bar.mark.unwrap_or(0.0)]
    };
    let most = panel.bars.iter().flat_map(values).fold(0.0, f64::max);
    let most = panel.reference.map_or(most, |reference| most.max(reference * 1.05)).max(1e-9);
    let x = |value: f64| LEFT + (value / most).clamp(0.0, 1.0) * SPAN;
    let title = &panel.title;
    let _ = writeln!(body, "<text x=\"20\" y=\"{:.1}\" font-weight=\"600\">{title}</text>", top + 18.0);
    let first = top + 30.0;
    let mut y = first;
    for bar in &panel.bars {
        draw_bar(body, y, bar, &x);
        y += STEP;
    }
    if let Some(at) = panel.reference.map(x) {
        let _ = writeln!(
            body,
            "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#6b7280\" stroke-dasharray=\"4 3\"/>",
            first - 3.0,
            y - 3.0
        );
    }
    y + 14.0
}

fn draw_bar(body: &mut String, y: f64, bar: &Bar, x: &impl Fn(f64) -> f64) {
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        body,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{y:.1}\" \
         width=\"{:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>",
        LEFT - 10.0,
        middle + 4.5,
        bar.label,
        x(bar.value) - LEFT,
        bar.colour
    );
    if let Some([low, high]) = bar.range {
        let (low, high, tick) = (x(low), x(high), middle - 4.0);
        let _ = writeln!(
            body,
            "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {tick:.1}v8M{high:.1} {tick:.1}v8\" \
             stroke=\"#111827\" stroke-width=\"1.2\"/>"
        );
    }
    if let Some(at) = bar.mark.map(x) {
        let tip = y + BAR - 1.0;
        let _ = writeln!(body, "<path d=\"M{at:.1} {tip:.1}l-5 7h10z\" fill=\"#b91c1c\"/>");
    }
    let (right, baseline, text) = (LEFT + SPAN + 16.0, middle + 4.5, &bar.text);
    let _ = writeln!(body, "<text x=\"{right:.1}\" y=\"{baseline:.1}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::{Bar, Panel, draw};

    #[test]
    fn longest_bar_spans_the_panel() {
        let bar = |value| Bar {
            label: "a".to_owned(),
            value,
            text: String::new(),
            colour: "#000000",
            range: None,
            mark: None,
        };
        let panel = |bars| Panel { title: "metric".to_owned(), bars, reference: None };
        let svg = draw("title", "note", &[panel(vec![bar(1.0), bar(4.0)]), panel(Vec::new())]);
        let widths: Vec<&str> =
            svg.lines().filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()).collect();
        assert!(widths.contains(&"430.0") && widths.contains(&"107.5"), "{widths:?}");
        assert_eq!(svg.matches(">metric<").count(), 1, "a panel without bars is left out");
    }
}
