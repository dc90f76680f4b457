//! The model that is moved: sharded safetensors of noise, and what is known of them without asking the product.
//!
//! Owns: writing the source, its files' BLAKE3, reading a layout by hand. Does not own: building or moving it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use modelpack::digest::Sha256Digest;
use serde_json::{Value, json};

/// How many shards the weights have.
const SHARDS: u64 = 4;

/// Where a layout lists its artifacts, and under what it says their tags.
const INDEX: &str = "index.json";
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// Where a layer's descriptor states its BLAKE3.
const ROOT_ANNOTATION: &str = "org.modelcast.blake3";

/// Bytes and BLAKE3 of a file.
pub type FileProof = (u64, blake3::Hash);

/// The model's directory, and what each of its files is.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub dir: PathBuf,
    /// Its files, by their paths in it.
    pub files: BTreeMap<PathBuf, FileProof>,
}

impl Source {
    /// Writes a model of about `bytes` to `dir`; another `seed` is another model.
    pub fn write(dir: &Path, bytes: u64, seed: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut index = BTreeMap::new();
        for shard in 1..=SHARDS {
            let name = format!("model-{shard:05}-of-{SHARDS:05}.safetensors");
            write_shard(&dir.join(&name), shard, bytes / SHARDS, &mut noise)?;
            index.insert(tensor(shard), name);
        }
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": index });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
        fs::write(dir.join("config.json"), r#"{"architectures":["Drill"],"model_type":"llama"}"#)?;
        let files = proofs(dir)?;
        Ok(Self { dir: dir.to_path_buf(), files })
    }
}

fn tensor(shard: u64) -> String {
    format!("model.layers.{shard}.weight")
}

fn write_shard(path: &Path, shard: u64, bytes: u64, noise: &mut blake3::OutputReader) -> anyhow::Result<()> {
    let bytes = bytes / 2 * 2;
    let entry = json!({ "dtype": "BF16", "shape": [bytes / 2], "data_offsets": [0, bytes] });
    let header = json!({ tensor(shard): entry }).to_string();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    std::io::copy(&mut noise.take(bytes), &mut file)?;
    Ok(file.flush()?)
}

/// Every file below `dir` but for what the product keeps for itself.
pub fn proofs(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, FileProof>> {
    let mut found = BTreeMap::new();
    for path in files_below(dir)? {
        let relative = path.strip_prefix(dir)?.to_path_buf();
        if !relative.starts_with(".modelctl") {
            found.insert(relative, hash(&path)?);
        }
    }
    Ok(found)
}

/// The paths of all files below `dir`.
pub fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).with_context(|| format!("cannot read `{}`", at.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

/// Bytes and BLAKE3 of one file.
pub fn hash(path: &Path) -> anyhow::Result<FileProof> {
    let mut file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.count(), hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        };
    }
}

/// One blob of a layout.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
}

/// What a layout's only artifact is, read by hand.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// SHA-256 of the manifest.
    pub id: [u8; 32],
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// Its distinct blobs in order of first mention.
    pub blobs: Vec<Blob>,
}

impl Artifact {
    /// Reads the artifact of that tag in the layout `dir`.
    pub fn read(dir: &Path, tag: &str) -> anyhow::Result<Self> {
        let index = json_of(&dir.join(INDEX))?;
        let manifests = index["manifests"].as_array().context("an index lists manifests")?;
        let is_tagged = |entry: &&Value| entry["annotations"][TAG_ANNOTATION].as_str() == Some(tag);
        let entry = manifests.iter().find(is_tagged).context("the layout has the artifact")?;
        let hex = hex_of(entry)?;
        let raw = fs::read(blob_path(dir, &hex))?;
        let manifest: Value = serde_json::from_slice(&raw)?;
        let config = fs::read(blob_path(dir, &hex_of(&manifest["config"])?))?;
        let mut id = [0; 32];
        hex::decode_to_slice(&hex, &mut id)?;
        let (mut seen, mut blobs) = (Vec::new(), Vec::new());
        for layer in manifest["layers"].as_array().context("a manifest lists layers")? {
            let hex = hex_of(layer)?;
            if !seen.contains(&hex) {
                let bytes = layer["size"].as_u64().context("a layer has a size")?;
                blobs.push(Blob { path: blob_path(dir, &hex), bytes });
                seen.push(hex);
            }
        }
        Ok(Self { id, manifest: raw, config, blobs })
    }

    /// Adds to its layout what another tool would have published: the same without BLAKE3 roots.
    pub fn add_without_roots(&self, dir: &Path, tag: &str) -> anyhow::Result<()> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest)?;
        for layer in manifest["layers"].as_array_mut().context("a manifest lists layers")? {
            let annotations = layer["annotations"].as_object_mut().context("a layer has annotations")?;
            annotations.remove(ROOT_ANNOTATION).context("a layer states its root")?;
        }
        let raw = manifest.to_string().into_bytes();
        let digest = Sha256Digest::of(&raw);
        fs::write(blob_path(dir, &digest.hex()), &raw)?;
        let mut index = json_of(&dir.join(INDEX))?;
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(),
            "size": raw.len(), "annotations": { TAG_ANNOTATION: tag },
        });
        index["manifests"].as_array_mut().context("an index lists manifests")?.push(entry);
        Ok(fs::write(dir.join(INDEX), index.to_string())?)
    }

    /// Bytes of its blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes).sum()
    }

    /// Its digest in a reference.
    pub fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.id))
    }
}

fn json_of(path: &Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn hex_of(descriptor: &Value) -> anyhow::Result<String> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    Ok(digest.context("a digest is SHA-256")?.to_owned())
}

fn blob_path(dir: &Path, hex: &str) -> PathBuf {
    dir.join("blobs/sha256").join(hex)
}
