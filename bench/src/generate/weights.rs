//! Sharded weights as real models have them, and variants of them as fine-tuning leaves them.
//!
//! Owns: names and sizes of tensors, their noise, which of them a variant changes. Does not own: the command line.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value, json};
use testbed::artifact::files_below;

/// Layers for each shard.
const LAYERS_PER_SHARD: u64 = 4;

/// Tensors of a layer, and how large they are to one another: a Llama's, with grouped queries.
const OF_LAYER: [(&str, u64); 9] = [
    ("input_layernorm", 1),
    ("self_attn.q_proj", 1600),
    ("self_attn.k_proj", 400),
    ("self_attn.v_proj", 400),
    ("self_attn.o_proj", 1600),
    ("post_attention_layernorm", 1),
    ("mlp.gate_proj", 5600),
    ("mlp.up_proj", 5600),
    ("mlp.down_proj", 5600),
];

/// The same of those before and after all layers.
const EMBEDDING: u64 = 12_000;
const NORM: u64 = 1;

/// The longest header that the format allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// How much noise is made at once.
const CHUNK: u64 = 1 << 20;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) bytes: u64,
    pub(crate) shards: u64,
    pub(crate) seed: u64,
}

/// Writes a model to `dir`.
pub(crate) fn write(dir: &Path, order: Order) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    let tensors = tensors(order);
    let total: u64 = tensors.iter().map(|(_, bytes)| bytes).sum();
    let (mut index, mut rest, mut done) = (Map::new(), &tensors[..], 0);
    for shard in 1..=order.shards {
        // As many as bring it to its share, one at least, and one for each that follows.
        let spare = usize::try_from(order.shards - shard)?;
        let mut count = 0;
        while count < rest.len().saturating_sub(spare)
            && (count == 0 || shard == order.shards || done < total / order.shards * shard)
        {
            done += rest[count].1;
            count += 1;
        }
        let name = format!("model-{shard:05}-of-{:05}.safetensors", order.shards);
        write_shard(&dir.join(&name), &rest[..count], order.seed)?;
        index.extend(rest[..count].iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        rest = &rest[count..];
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "seed": order.seed });
    Ok(fs::write(dir.join("config.json"), config.to_string())?)
}

/// Names and bytes of all tensors, in order.
fn tensors(order: Order) -> Vec<(String, u64)> {
    let layers = order.shards * LAYERS_PER_SHARD;
    let mut shares = vec![("model.embed_tokens.weight".to_owned(), EMBEDDING)];
    for layer in 0..layers {
        let of_layer =
            OF_LAYER.iter().map(|(name, share)| (format!("model.layers.{layer}.{name}.weight"), *share));
        shares.extend(of_layer);
    }
    shares.push(("model.norm.weight".to_owned(), NORM));
    shares.push(("lm_head.weight".to_owned(), EMBEDDING));
    let all: u64 = shares.iter().map(|(_, share)| share).sum();
    let bytes = |share: u64| u128::from(order.bytes) * u128::from(share) / u128::from(all) / 2 * 2;
    // A share of a number is no larger than it.
    shares.into_iter().map(|(name, share)| (name, u64::try_from(bytes(share)).unwrap_or(u64::MAX))).collect()
}

fn write_shard(path: &Path, tensors: &[(String, u64)], seed: u64) -> anyhow::Result<()> {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, bytes) in tensors {
        let entry = json!({ "dtype": "BF16", "shape": [bytes / 2], "data_offsets": [at, at + bytes] });
        header.insert(name.clone(), entry);
        at += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (name, bytes) in tensors {
        io::copy(&mut noise(seed, name).take(*bytes), &mut file)?;
    }
    Ok(file.flush()?)
}

/// What a tensor holds.
fn noise(seed: u64, name: &str) -> blake3::OutputReader {
    blake3::Hasher::new().update(&seed.to_le_bytes()).update(name.as_bytes()).finalize_xof()
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    file: PathBuf,
    name: String,
    begin: u64,
    bytes: u64,
}

/// Copies the model in `like` to `dir` and changes so many hundredths of its weights: whole tensors, and part of one.
/// Says how many bytes were changed.
pub(crate) fn vary(like: &Path, dir: &Path, percent: f64, seed: u64) -> anyhow::Result<u64> {
    ensure!(like.is_dir(), "`{}` is no directory", like.display());
    fs::create_dir_all(dir)?;
    ensure!(
        !fs::canonicalize(dir)?.starts_with(fs::canonicalize(like)?),
        "a variant is not put into the model that it is of"
    );
    let mut tensors = Vec::new();
    for from in files_below(like)? {
        let relative = from.strip_prefix(like)?;
        let to = dir.join(relative);
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy `{}`", from.display()))?;
        if relative.extension().is_some_and(|extension| extension == "safetensors") {
            tensors.extend(placed(&to)?);
        }
    }
    ensure!(!tensors.is_empty(), "`{}` has no safetensors", like.display());
    // Any order that has nothing to do with where they lie.
    tensors.sort_by_key(|tensor| {
        *blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .update(tensor.name.as_bytes())
            .finalize()
            .as_bytes()
    });
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a size, which is far below 2^52"
    )]
    let target = (total as f64 * percent / 100.0) as u64;
    let mut left = target;
    for tensor in tensors {
        let bytes = tensor.bytes.min(left);
        overwrite(&tensor, bytes, seed)?;
        left -= bytes;
    }
    Ok(target - left)
}

/// The tensors of a file.
fn placed(path: &Path) -> anyhow::Result<Vec<Placed>> {
    let bad = || format!("`{}` is no safetensors file", path.display());
    let file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).with_context(bad)?;
    let length = u64::from_le_bytes(length);
    let whole = file.metadata()?.len();
    ensure!(length <= HEADER_BYTES_MAX.min(whole.saturating_sub(8)), bad());
    let mut header = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut header, 8)?;
    let header: Map<String, Value> = serde_json::from_slice(&header).with_context(bad)?;
    let mut found = Vec::new();
    for (name, entry) in header {
        if name == "__metadata__" {
            continue;
        }
        let offset = |at: usize| entry["data_offsets"][at].as_u64();
        let (begin, end) = offset(0).zip(offset(1)).with_context(bad)?;
        ensure!(begin <= end && end <= whole - 8 - length, bad());
        found.push(Placed { file: path.to_owned(), name, begin: 8 + length + begin, bytes: end - begin });
    }
    Ok(found)
}

fn overwrite(tensor: &Placed, bytes: u64, seed: u64) -> anyhow::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let file = File::options().write(true).open(&tensor.file)?;
    // The model that it is of may have been made with the same seed.
    let mut noise = noise(seed, &format!("variant {}", tensor.name));
    let (mut at, end) = (tensor.begin, tensor.begin + bytes);
    let mut chunk = Vec::new();
    while at < end {
        chunk.resize(usize::try_from((end - at).min(CHUNK))?, 0);
        noise.fill(&mut chunk);
        file.write_all_at(&chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

/// How many files there are below `dir`, and their bytes.
pub(crate) fn count(dir: &Path) -> anyhow::Result<(usize, u64)> {
    let files = files_below(dir)?;
    let bytes = files.iter().map(|file| Ok(fs::metadata(file)?.len())).sum::<io::Result<u64>>()?;
    Ok((files.len(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order = Order { bytes: 3_000_000, shards: 3, seed: 7 };

    #[test]
    fn a_model_has_its_size_and_shards() {
        let dir = tempfile::tempdir().unwrap();
        for shards in [1, 3, 40] {
            let dir = dir.path().join(shards.to_string());
            write(&dir, Order { shards, ..ORDER }).unwrap();
            let mut tensors = Vec::new();
            for file in files_below(&dir).unwrap() {
                if file.extension().is_some_and(|extension| extension == "safetensors") {
                    let of_file = placed(&file).unwrap();
                    let bytes: u64 = of_file.iter().map(|tensor| tensor.bytes).sum();
                    assert!(bytes * shards < 2 * ORDER.bytes, "{shards} shards, one of {bytes}");
                    tensors.push(of_file);
                }
            }
            assert_eq!(tensors.len() as u64, shards);
            let bytes: u64 = tensors.iter().flatten().map(|tensor| tensor.bytes).sum();
            assert!(bytes <= ORDER.bytes && bytes > ORDER.bytes - 10_000, "{bytes}");
        }
    }

    #[test]
    fn a_variant_differs_by_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (base, variant) = (dir.path().join("base"), dir.path().join("variant"));
        write(&base, ORDER).unwrap();
        for percent in [0.0, 1.0, 37.5, 100.0] {
            let changed = vary(&base, &variant, percent, ORDER.seed).unwrap();
            let mut differing = 0_u32;
            for file in files_below(&base).unwrap() {
                let other = fs::read(variant.join(file.strip_prefix(&base).unwrap())).unwrap();
                let bytes = fs::read(&file).unwrap();
                assert_eq!(bytes.len(), other.len());
                differing += u32::try_from(bytes.iter().zip(&other).filter(|(a, b)| a != b).count()).unwrap();
            }
            // One byte of noise in 256 is what it was.
            assert!(
                u64::from(differing) <= changed && u64::from(differing) * 100 >= changed * 99,
                "{changed}"
            );
            let expected = f64::from(3_000_000) * percent / 100.0;
            assert!((f64::from(u32::try_from(changed).unwrap()) - expected).abs() < 10_000.0, "{changed}");
        }
    }

    #[test]
    fn no_variant_of_what_is_no_model() {
        let dir = tempfile::tempdir().unwrap();
        let (base, variant) = (dir.path().join("base"), dir.path().join("variant"));
        fs::create_dir(&base).unwrap();
        vary(&base, &variant, 1.0, 1).unwrap_err();
        for bytes in [&b"short"[..], &[255; 64], b"\x02\0\0\0\0\0\0\0[]"] {
            fs::write(base.join("model.safetensors"), bytes).unwrap();
            vary(&base, &variant, 1.0, 1).unwrap_err();
        }
        write(&base, ORDER).unwrap();
        vary(&base, &base.join("inside"), 1.0, 1).unwrap_err();
    }
}
