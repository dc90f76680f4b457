//! The picture of `simulator policies`: a panel for each case, a line for each policy, a dot for each number of peers.
//! Does not own figures.

use std::fmt::Write as _;

use simulator::policies::Kind;
use simulator::sweep::Case;

use super::{Row, ratio};

const WIDTH: f64 = 960.0;
/// Above the panels: title, what is shown, legend.
const HEAD: f64 = 108.0;
const PANEL: (f64, f64) = (480.0, 224.0);
/// Left and right of a panel's axis: names, and the value of the dot farthest right.
const MARGINS: (f64, f64) = (96.0, 56.0);
const LINE: f64 = 28.0;
/// Legible on light and on dark.
const INK: &str = "#727C86";
const WINNER: &str = "#2F81F7";
const TARGET: &str = "#2DA44E";
/// Where the axis turns from linear to logarithmic, above 1.
const BEND: f64 = 0.03;
const RIGHT_MIN: f64 = 12.0;
const TICKS: [f64; 9] = [1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Draws all rows.
pub(super) fn draw(cases: &[Case], rows: &[Row], about: &str) -> String {
    let mut peers: Vec<u32> = rows.iter().map(|row| row.peers).collect();
    peers.sort_unstable();
    peers.dedup();
    let finite = rows.iter().map(|row| row.median).filter(|median| median.is_finite());
    let axis = Axis { right: finite.fold(RIGHT_MIN, f64::max) };
    let height = HEAD + PANEL.1 * count(cases.len().div_ceil(2));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n"
    );
    text(
        &mut svg,
        (20.0, 30.0),
        "Ways to give a model to N peers at once",
        "font-size=\"18\" font-weight=\"bold\"",
    );
    text(&mut svg, (20.0, 52.0), about, "font-size=\"13\"");
    legend(&mut svg, &peers);
    for (at, case) in cases.iter().enumerate() {
        let origin = (PANEL.0 * count(at % 2), HEAD + PANEL.1 * count(at / 2));
        let of_case: Vec<&Row> = rows.iter().filter(|row| row.case == *case).collect();
        panel(&mut svg, (origin, &axis), *case, (&of_case, &peers));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Linear next to the bound, logarithmic far from it.
struct Axis {
    right: f64,
}

impl Axis {
    fn x(&self, ratio: f64) -> f64 {
        let bent = |ratio: f64| ((ratio - 1.0) / BEND).asinh();
        let width = PANEL.0 - MARGINS.0 - MARGINS.1;
        MARGINS.0 + width * bent(ratio.min(self.right)) / bent(self.right)
    }
}

fn legend(svg: &mut String, peers: &[u32]) {
    let mut x = 26.0;
    for (at, peers) in peers.iter().enumerate() {
        dot(svg, (x, 78.0), (radius(at), INK));
        text(svg, (x + 12.0, 82.0), &format!("{peers} peers"), "");
        x += 84.0;
    }
    x += 12.0;
    vertical(svg, (x, 69.0, 87.0), &format!("stroke=\"{INK}\" stroke-width=\"1.5\""));
    text(svg, (x + 8.0, 82.0), "the bound", "");
    x += 92.0;
    vertical(
        svg,
        (x, 69.0, 87.0),
        &format!("stroke=\"{TARGET}\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\""),
    );
    text(svg, (x + 8.0, 82.0), "what the hybrid must reach", "");
    text(svg, (WIDTH - 4.0, 82.0), "numbers: the worst of a line", "text-anchor=\"end\"");
}

fn panel(
    svg: &mut String,
    ((left, top), axis): ((f64, f64), &Axis),
    case: Case,
    (rows, peers): (&[&Row], &[u32]),
) {
    let bottom = top + 30.0 + LINE * count(Kind::ALL.len());
    text(svg, (left + MARGINS.0, top + 18.0), title(case), "font-size=\"14\" font-weight=\"bold\"");
    for tick in TICKS {
        let x = left + axis.x(tick);
        let (width, opacity) = if tick > 1.0 { (1.0, 0.2) } else { (1.5, 1.0) };
        let style = format!("stroke=\"{INK}\" stroke-width=\"{width}\" opacity=\"{opacity}\"");
        vertical(svg, (x, top + 28.0, bottom), &style);
        text(svg, (x, bottom + 15.0), &tick.to_string(), "text-anchor=\"middle\" font-size=\"11\"");
    }
    if let Some(target) = target(case) {
        let style = format!("stroke=\"{TARGET}\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\"");
        vertical(svg, (left + axis.x(target), top + 28.0, bottom), &style);
    }
    for (at, policy) in Kind::ALL.into_iter().enumerate() {
        let y = top + 30.0 + LINE * (count(at) + 0.5);
        let (ink, weight) = if policy == Kind::Hybrid { (WINNER, "bold") } else { (INK, "normal") };
        let style = format!("text-anchor=\"end\" font-size=\"13\" font-weight=\"{weight}\" fill=\"{ink}\"");
        text(svg, (left + MARGINS.0 - 14.0, y + 4.0), policy.name(), &style);
        let dots: Vec<(f64, &Row)> = rows
            .iter()
            .filter(|row| row.policy == policy)
            .map(|row| (left + axis.x(row.median), *row))
            .collect();
        dots_of(svg, (left + PANEL.0, y, ink), &dots, peers);
    }
}

fn dots_of(svg: &mut String, (right, y, ink): (f64, f64, &str), dots: &[(f64, &Row)], peers: &[u32]) {
    let first = dots.iter().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let Some((last, worst)) = dots.iter().max_by(|one, other| one.1.median.total_cmp(&other.1.median)) else {
        return;
    };
    let _ = writeln!(
        svg,
        "<line x1=\"{first:.1}\" y1=\"{y:.1}\" x2=\"{last:.1}\" y2=\"{y:.1}\" stroke=\"{ink}\" stroke-width=\"2\" \
         opacity=\"0.35\"/>"
    );
    for (x, row) in dots {
        let at = peers.iter().position(|peers| *peers == row.peers).unwrap_or_default();
        dot(svg, (*x, y), (radius(at), ink));
    }
    let style = format!("fill=\"{ink}\" text-anchor=\"end\"");
    text(svg, (right - 4.0, y + 4.0), &ratio(worst.median), &style);
}

/// What is asked of the hybrid; where cards differ, nothing is.
fn target(case: Case) -> Option<f64> {
    match case {
        Case::Clean => Some(1.05),
        Case::Heterogeneous => None,
        _ => Some(1.1),
    }
}

fn title(case: Case) -> &'static str {
    match case {
        Case::Clean => "Nothing goes wrong",
        Case::Slow => "A tenth of the peers are ten times slower",
        Case::Kill => "A tenth of the peers die at half time",
        Case::Heterogeneous => "Cards of the whole, half and quarter rate",
        Case::OriginFast => "The origin is four times faster than a card",
        Case::OriginSlow => "The origin has half the rate of a card",
        Case::Late => "One peer comes at half time",
        Case::SchedulerDown => "No scheduler from 20 % to 80 %",
        Case::Racks => "Racks whose uplinks do a third of what their cards do",
        Case::Far => "Every other far from the origin",
        Case::Disk => "A tenth of the disks do half of what cards do",
        Case::Hash => "A tenth of the cores hash half of what cards do",
        Case::Unequal => "The origin gives some up to four times what others get",
    }
}

fn radius(at: usize) -> f64 {
    3.0 + 1.75 * count(at)
}

fn dot(svg: &mut String, (x, y): (f64, f64), (radius, ink): (f64, &str)) {
    let _ = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{ink}\" fill-opacity=\"0.75\"/>"
    );
}

fn vertical(svg: &mut String, (x, top, bottom): (f64, f64, f64), style: &str) {
    let _ = writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" {style}/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), words: &str, style: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>");
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn count(number: usize) -> f64 {
    number as f64
}
