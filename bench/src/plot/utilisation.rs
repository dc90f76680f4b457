//! `utilisation.svg`: how full each host's link was over time, a heat map for what came in and one for what went out.

use plotters::style::Color as _;

use super::{
    canvas::{BLUE, Canvas, GREY, Look, Place, Side, picture, round_ticks},
    input::{Sample, Trace, bytes},
};

/// More columns than this are finer than a reader sees.
const COLUMNS_MAX: usize = 120;
/// Pixels.
const ROW: i32 = 18;

/// What of a sample a panel shows.
#[derive(Clone, Copy)]
enum Panel {
    Received,
    Sent,
}

impl Panel {
    fn of(self, sample: &Sample) -> &[f64] {
        match self {
            Self::Received => &sample.rx,
            Self::Sent => &sample.tx,
        }
    }
}

/// The samples between which columns lie: all of them, or every so many.
fn columns(trace: &Trace) -> Vec<&Sample> {
    let step = trace.samples.len().div_ceil(COLUMNS_MAX).max(1);
    trace.samples.iter().step_by(step).collect()
}

/// The share of the measured goodput between two samples.
fn share(trace: &Trace, bytes: f64, seconds: f64) -> f64 {
    (bytes * 8.0 / 1e6 / seconds / trace.goodput_mbit).clamp(0.0, 1.0)
}

fn panel(canvas: &Canvas<'_>, trace: &Trace, which: Panel, place: Place) -> anyhow::Result<()> {
    let end_s = trace.samples.last().map_or(1.0, |sample| sample.t);
    let rows = u32::try_from(trace.hosts.len()).map_or(1.0, f64::from);
    // The first host is the uppermost row.
    let frame = canvas.frame(place, (0.0, end_s), (rows, 0.0));
    let (name, hosts_are_named) = match which {
        Panel::Received => ("received", true),
        Panel::Sent => ("sent", false),
    };
    canvas.text((place.left, place.top - 13), name, &Look { bold: true, ..Look::default() })?;
    let columns = columns(trace);
    for (host, row) in (0_u32..).zip(&trace.hosts) {
        let top = f64::from(host);
        let index = usize::try_from(host)?;
        for pair in columns.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let full = share(trace, which.of(to)[index] - which.of(from)[index], to.t - from.t);
            frame.cell([(from.t, top + 0.04), (to.t, top + 0.96)], BLUE.mix(0.05 + 0.95 * full))?;
        }
        if hosts_are_named {
            frame.text(
                (0.0, top + 0.5),
                (-8, 0),
                row,
                &Look { side: Side::Right, size: 12, ..Look::default() },
            )?;
        }
    }
    for (at, label) in round_ticks(end_s) {
        frame.text((at, rows), (0, 14), &label, &Look { side: Side::Middle, size: 12, ..Look::default() })?;
    }
    let middle = i32::midpoint(place.left, place.right);
    canvas.text(
        (middle, place.bottom + 34),
        "seconds",
        &Look { side: Side::Middle, size: 12, ..Look::default() },
    )
}

/// What the colours say.
fn scale(canvas: &Canvas<'_>) -> anyhow::Result<()> {
    let place = Place { left: 720, right: 840, top: 44, bottom: 56 };
    let frame = canvas.frame(place, (0.0, 20.0), (0.0, 1.0));
    for step in 0..20 {
        let at = f64::from(step);
        frame.cell([(at, 0.0), (at + 1.0, 1.0)], BLUE.mix(0.05 + 0.95 * at / 19.0))?;
    }
    canvas.text((712, 50), "idle", &Look { side: Side::Right, size: 12, colour: GREY, bold: false })?;
    canvas.text((848, 50), "full", &Look { size: 12, ..Look::default() })
}

/// Draws it.
pub(crate) fn draw(trace: &Trace) -> anyhow::Result<String> {
    let rows = ROW * i32::try_from(trace.hosts.len())?;
    let height = 100 + rows + 50;
    let title = format!("{}: how full links are, {} peers", trace.system, trace.n);
    let subtitle =
        format!("share of the measured goodput of {:.0} mbit/s · {}", trace.goodput_mbit, bytes(trace.size));
    let svg = picture(height, &title, &subtitle, |canvas| {
        scale(canvas)?;
        let place = Place { left: 80, right: 470, top: 100, bottom: 100 + rows };
        panel(canvas, trace, Panel::Received, place)?;
        panel(canvas, trace, Panel::Sent, Place { left: 490, right: 880, ..place })
    })?;
    // Without it the seams between cells shine through.
    Ok(svg.replacen("role=\"img\"", "role=\"img\" shape-rendering=\"crispEdges\"", 1))
}
