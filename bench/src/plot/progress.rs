//! `progress.svg`: what each peer of one broadcast has received over time, by its network card, beside the bound.

use plotters::style::{Color as _, RGBColor};

use super::{
    canvas::{BLUE, GREY, Look, Place, Side, TEAL, picture, round_ticks},
    input::{Trace, bytes},
};

/// What counts as all of it: what a card still receives after that is goodbyes.
const DONE: f64 = 0.995;

/// When a host had received nearly all of what it received at all.
fn done_s(trace: &Trace, host: usize) -> f64 {
    let last = trace.samples.last().map_or(0.0, |sample| sample.rx[host]);
    let done = trace.samples.iter().find(|sample| sample.rx[host] >= DONE * last);
    done.map_or(0.0, |sample| sample.t)
}

/// A colour for each peer between two calm ones.
fn shade(index: usize, of: usize) -> RGBColor {
    let part = |from: u8, to: u8| {
        let (index, of) = (u32::try_from(index).unwrap_or(0), u32::try_from(of.max(2) - 1).unwrap_or(1));
        let mixed = (u32::from(from) * (of - index.min(of)) + u32::from(to) * index.min(of)) / of;
        u8::try_from(mixed).unwrap_or(u8::MAX)
    };
    RGBColor(part(BLUE.0, TEAL.0), part(BLUE.1, TEAL.1), part(BLUE.2, TEAL.2))
}

/// Draws it.
pub(crate) fn draw(trace: &Trace) -> anyhow::Result<String> {
    let peers: Vec<usize> = (1..trace.hosts.len()).collect();
    let last_s = peers.iter().map(|peer| done_s(trace, *peer)).fold(0.0, f64::max);
    let end_s = last_s.max(trace.bound_s) * 1.02;
    let share = |bytes: f64| 100.0 * bytes / trace.size;
    let most =
        trace.samples.iter().flat_map(|sample| sample.rx[1..].iter()).copied().fold(trace.size, f64::max);
    let title = format!(
        "{}: {} to {} peers at {:.0} mbit/s",
        trace.system,
        bytes(trace.size),
        trace.n,
        trace.rate_mbit
    );
    let subtitle =
        "received by each peer's network card, protocol overhead included, as a share of the model";
    picture(420, &title, subtitle, |canvas| {
        let frame = canvas.frame(Place::below_title(420, 40), (0.0, end_s), (0.0, share(most) * 1.02));
        let ticks: Vec<_> = [0.0, 25.0, 50.0, 75.0, 100.0].map(|at| (at, format!("{at} %"))).into();
        frame.y_axis(&ticks)?;
        frame.x_axis(&round_ticks(end_s), "seconds")?;
        for (index, peer) in peers.iter().enumerate() {
            let until = done_s(trace, *peer);
            let seen = trace.samples.iter().filter(|sample| sample.t <= until);
            let points =
                std::iter::once((0.0, 0.0)).chain(seen.map(|sample| (sample.t, share(sample.rx[*peer]))));
            let points: Vec<_> = points.collect();
            let end = points.last().copied().unwrap_or((0.0, 0.0));
            let colour = shade(index, peers.len());
            frame.line(points, colour.mix(0.85), 18)?;
            frame.dot(end, colour)?;
        }
        frame.dashes((0.0, 0.0), (trace.bound_s, 100.0))?;
        let bound = format!("bound {:.1} s", trace.bound_s);
        let left = Look { side: Side::Right, colour: GREY, ..Look::default() };
        frame.text((trace.bound_s * 0.6, 60.0), (-16, -8), &bound, &left)?;
        let names = match peers.as_slice() {
            [one] => trace.hosts[*one].clone(),
            [first, .., last] => format!("{} … {}", trace.hosts[*first], trace.hosts[*last]),
            [] => String::new(),
        };
        let label = format!("{names}, last done {last_s:.1} s = {:.2} × bound", last_s / trace.bound_s);
        let look = Look { side: Side::Right, colour: BLUE, bold: true, ..Look::default() };
        frame.text((end_s, 8.0), (-6, 0), &label, &look)
    })
}
