//! What the cards moved over time, in a file for `bench plot`. Does not own measuring it.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context as _;
use serde_json::json;

use super::{measured::Conditions, meter::Sample};

/// Writes a line of what was measured, then one of bytes since the start for each look.
pub(crate) fn write(
    file: &Path,
    system: &str,
    conditions: &Conditions<'_>,
    samples: &[Sample],
) -> anyhow::Result<()> {
    let context = || format!("cannot write `{}`", file.display());
    let mut out = BufWriter::new(File::create(file).with_context(context)?);
    let hosts: Vec<String> = (0..=conditions.n)
        .map(|host| if host == 0 { "origin".to_owned() } else { format!("peer{host}") })
        .collect();
    let head = json!({
        "trace": "broadcast", "system": system, "n": conditions.n, "rate_mbit": conditions.rate_mbit,
        "goodput_mbit": conditions.goodput * 8.0 / 1e6, "size": conditions.size, "bound_s": conditions.bound_s(),
        "hosts": hosts,
    });
    writeln!(out, "{head}").with_context(context)?;
    for Sample { at_s, received, sent } in samples {
        writeln!(out, "{}", json!({ "t": at_s, "rx": received, "tx": sent })).with_context(context)?;
    }
    out.flush().with_context(context)
}
