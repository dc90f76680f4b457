//! `makespan.svg`: when the last peer has all of it, as a multiple of the bound, against the number of peers.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::Value;

use super::{
    canvas::{GREY, Look, Place, colour, picture},
    input::{Broadcast, bytes},
};
use crate::statistics::median;

/// The lines of a system: number of peers to what was measured with it.
pub(crate) struct Series {
    name: String,
    points: BTreeMap<u32, Vec<f64>>,
    of: Broadcast,
}

/// The broadcasts among results, a line for each system. One with faults has another bound and is not in the picture.
pub(crate) fn series(results: &[Value]) -> Vec<Series> {
    let healthy = results.iter().filter(|result| result["bench"] == "broadcast" && !has_faults(result));
    let broadcasts: Vec<Broadcast> =
        healthy.filter_map(|result| Broadcast::deserialize(result).ok()).collect();
    let setting = |one: &Broadcast| format!("{} at {:.0} mbit", bytes(one.size), one.rate_mbit);
    // The title says this one.
    let usual = broadcasts.first().map(setting);
    let mut series: Vec<Series> = Vec::new();
    for one in broadcasts {
        let is_usual = usual == Some(setting(&one));
        let name = if is_usual { one.system.clone() } else { format!("{}, {}", one.system, setting(&one)) };
        let (n, ratio) = (one.n, one.last_s / one.bound_s);
        let index = series.iter().position(|series| series.name == name).unwrap_or_else(|| {
            series.push(Series { name, points: BTreeMap::new(), of: one });
            series.len() - 1
        });
        series[index].points.entry(n).or_default().push(ratio);
    }
    series
}

/// Whether something was done to the fleet: `faults` or `shape` say what.
fn has_faults(result: &Value) -> bool {
    ["faults", "shape"].iter().any(|name| match &result[name] {
        Value::Array(of) => !of.is_empty(),
        Value::Object(of) => !of.is_empty(),
        Value::String(of) => !of.is_empty() && of != "none",
        _ => false,
    })
}

fn middle(values: &[f64]) -> f64 {
    median(values).unwrap_or(f64::NAN)
}

/// Draws it, both axes logarithmic: a fleet that reads one by one is a straight line upwards.
pub(crate) fn draw(series: &[Series]) -> anyhow::Result<String> {
    let numbers: Vec<u32> = series.iter().flat_map(|one| one.points.keys().copied()).collect();
    let ratios = || series.iter().flat_map(|one| one.points.values()).map(|values| middle(values));
    let least = f64::from(numbers.iter().copied().min().unwrap_or(1).max(1));
    let most = f64::from(numbers.iter().copied().max().unwrap_or(2)).max(least * 2.0);
    let highest = ratios().fold(2.0, f64::max) * 1.15;
    // Below the bound only by an error of measurement, which the picture must not hide.
    let lowest = ratios().fold(0.8, f64::min).max(0.05);
    let first = &series[0].of;
    let subtitle = format!(
        "last peer done, as a multiple of the fluid bound · {} at {:.0} mbit/s, medians",
        bytes(first.size),
        first.rate_mbit
    );
    picture(430, "Broadcast of a model to N peers at once", &subtitle, |canvas| {
        let place = Place::below_title(430, 170);
        let frame = canvas.frame(place, (least.log2() - 0.12, most.log2()), (lowest.log2(), highest.log2()));
        let mut all = numbers.clone();
        all.sort_unstable();
        all.dedup();
        let x_ticks: Vec<_> = all.iter().map(|n| (f64::from(*n).log2(), n.to_string())).collect();
        let y_ticks: Vec<_> = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0]
            .into_iter()
            .filter(|ratio: &f64| *ratio <= highest)
            .map(|ratio| (ratio.log2(), format!("{ratio} ×")))
            .collect();
        frame.y_axis(&y_ticks)?;
        frame.x_axis(&x_ticks, "peers")?;
        frame.dashes((least.log2() - 0.12, 0.0), (most.log2(), 0.0))?;
        let mut ends = Vec::new();
        for (index, one) in series.iter().enumerate() {
            let colour = colour(&one.name, index);
            let points: Vec<_> =
                one.points.iter().map(|(n, all)| (f64::from(*n).log2(), middle(all).log2())).collect();
            frame.line(points.clone(), colour.into(), 25)?;
            for point in &points {
                frame.dot(*point, colour)?;
            }
            if let Some((n, all)) = one.points.last_key_value() {
                let end = middle(all);
                ends.push(((f64::from(*n).log2(), end.log2()), format!("{}  {end:.2} ×", one.name), colour));
            }
        }
        frame.end_labels(ends)?;
        frame.text((least.log2(), 0.0), (0, 13), "bound", &Look { colour: GREY, ..Look::default() })
    })
}
