//! `latency.svg`: the percentiles of every latency among results, wherever in a result they stand.

use serde_json::Value;

use super::canvas::{Place, colour, picture};

/// The names of percentiles in results, and in the picture.
const PERCENTILES: [(&str, &str); 5] = [
    ("p50_us", "50 %"),
    ("p90_us", "90 %"),
    ("p99_us", "99 %"),
    ("p999_us", "99.9 %"),
    ("max_us", "slowest"),
];

/// A latency: what of, and its percentiles in microseconds.
#[derive(Debug, PartialEq)]
pub(crate) struct Series {
    name: String,
    percentiles: [f64; PERCENTILES.len()],
}

/// All that results hold.
pub(crate) fn series(results: &[Value]) -> Vec<Series> {
    let mut found = Vec::new();
    for result in results {
        look_into(result, result["bench"].as_str().unwrap_or_default(), &mut found);
    }
    // A file may hold several runs of the same; the last one counts.
    let mut series: Vec<Series> = Vec::new();
    for one in found {
        series.retain(|other| other.name != one.name);
        series.push(one);
    }
    series
}

fn look_into(value: &Value, name: &str, found: &mut Vec<Series>) {
    let percentiles: Vec<f64> = PERCENTILES.iter().filter_map(|(key, _)| value[key].as_f64()).collect();
    if let Ok(percentiles) = <[f64; PERCENTILES.len()]>::try_from(percentiles) {
        found.push(Series { name: name.to_owned(), percentiles });
    }
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                // A list's name says nothing that the names in it do not say.
                let of = match field {
                    Value::Array(_) => name.to_owned(),
                    _ => format!("{name} {}", key.trim_end_matches("_us").replace('_', " ")),
                };
                look_into(field, &of, found);
            }
        }
        Value::Array(rows) => {
            for row in rows {
                let of = ["name", "system", "transport"]
                    .iter()
                    .find_map(|key| row[key].as_str().map(str::to_owned));
                let of = of.or_else(|| row["peers"].as_u64().map(|peers| format!("{peers} peers")));
                look_into(row, &of.map_or(name.to_owned(), |of| format!("{name} {of}")), found);
            }
        }
        _ => {}
    }
}

/// A number of microseconds for people.
fn time(micros: f64) -> String {
    match micros {
        ..1e3 => format!("{micros:.0} µs"),
        ..1e6 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.0} s", micros / 1e6),
    }
}

/// Draws it, times logarithmic.
pub(crate) fn draw(series: &[Series]) -> anyhow::Result<String> {
    let all = || series.iter().flat_map(|one| one.percentiles).map(|micros| micros.max(1.0));
    let lowest = all().fold(f64::MAX, f64::min).log10().floor();
    let highest = all().fold(1.0, f64::max).log10().ceil().max(lowest + 1.0);
    picture(400, "Latency", "percentiles of all measured operations", |canvas| {
        let frame = canvas.frame(Place::below_title(400, 260), (-0.2, 4.0), (lowest, highest));
        let powers = std::iter::successors(Some(lowest), |power| Some(power + 1.0));
        let y: Vec<_> = powers
            .take_while(|power| *power <= highest)
            .map(|power| (power, time(10_f64.powf(power))))
            .collect();
        let x: Vec<_> =
            (0_u32..).zip(PERCENTILES).map(|(at, (_, name))| (f64::from(at), name.to_owned())).collect();
        frame.y_axis(&y)?;
        frame.x_axis(&x, "of operations are at least this quick")?;
        let mut ends = Vec::new();
        for (index, one) in series.iter().enumerate() {
            let colour = colour(&one.name, index);
            let points =
                (0_u32..).zip(one.percentiles).map(|(at, micros)| (f64::from(at), micros.max(1.0).log10()));
            let points: Vec<_> = points.collect();
            frame.line(points.clone(), colour.into(), 22)?;
            for point in &points {
                frame.dot(*point, colour)?;
            }
            ends.push((points[PERCENTILES.len() - 1], one.name.clone(), colour));
        }
        frame.end_labels(ends)
    })
}
