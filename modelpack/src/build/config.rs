//! The config blob of a new artifact: what its files say of the model.
//!
//! Source: ModelPack specification 0.0.7, docs/config.md and schema/config-schema.json, which allows no other fields.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::{Options, SourceFile};
use crate::{document::to_bytes, manifest::Kind, modelfile::Facts, safetensors};

#[derive(Serialize)]
struct NewConfig<'a> {
    descriptor: ModelDescriptor<'a>,
    modelfs: ModelFs,
    config: ConfigFacts<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelDescriptor<'a> {
    created_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authors: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(rename = "docURL", skip_serializing_if = "Option::is_none")]
    doc_url: Option<&'a str>,
    #[serde(rename = "sourceURL", skip_serializing_if = "Option::is_none")]
    source_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    licenses: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFacts<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    param_size: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities<'a>>,
}

#[derive(Serialize)]
struct Capabilities<'a> {
    languages: &'a [String],
}

/// As much of a file as its model's facts are taken from.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed<'a> {
    /// Its path below the model's directory.
    pub path: &'a str,
    /// What it is for.
    pub kind: Kind,
    /// Its size in bytes.
    pub size: u64,
    /// What its header says, if it is a safetensors file; for equal files only once.
    pub safetensors: Option<&'a safetensors::Summary>,
}

/// The config of files that are already in layer order.
pub(super) fn config(files: &[(Kind, SourceFile)], options: &Options, created_at: &str) -> Vec<u8> {
    let mut seen = BTreeSet::new();
    let surveyed = files.iter().map(|(kind, file)| Surveyed {
        path: &file.path,
        kind: *kind,
        size: file.size,
        safetensors: file.safetensors.as_ref().filter(|_| seen.insert(file.digest)),
    });
    let surveyed: Vec<_> = surveyed.collect();
    let facts = options.facts.clone().or(derived(&surveyed, options.hf_config.as_ref()));
    let about = &options.about;
    let languages = (!about.languages.is_empty()).then_some(Capabilities { languages: &about.languages });
    to_bytes(&NewConfig {
        descriptor: ModelDescriptor {
            created_at,
            family: facts.family.as_deref(),
            name: facts.name.as_deref().filter(|name| !name.is_empty()),
            authors: &about.authors,
            vendor: about.vendor.as_deref(),
            version: about.version.as_deref(),
            title: about.title.as_deref(),
            description: about.description.as_deref(),
            doc_url: about.doc_url.as_deref(),
            source_url: about.source_url.as_deref(),
            revision: about.revision.as_deref(),
            licenses: &about.licenses,
        },
        // Every layer is `raw`, so that its uncompressed digest is its digest.
        modelfs: ModelFs {
            r#type: "layers",
            diff_ids: files.iter().map(|(_, file)| file.digest.to_string()).collect(),
        },
        config: ConfigFacts {
            architecture: facts.architecture.as_deref(),
            format: facts.format.as_deref(),
            param_size: facts.param_size.as_deref(),
            precision: facts.precision.as_deref(),
            quantization: facts.quantization.as_deref(),
            capabilities: languages,
        },
    })
}

/// What files say of their model.
pub(super) fn derived(files: &[Surveyed<'_>], hf_config: Option<&Value>) -> Facts {
    let hf_text = |pointer: &str| {
        let value = hf_config.and_then(|config| config.pointer(pointer));
        value.and_then(Value::as_str).filter(|text| !text.is_empty())
    };
    // A config of the transformers library, by either of the keys that only it writes.
    let is_transformer = hf_text("/transformers_version").is_some() || hf_text("/architectures/0").is_some();
    let stated_precision = || {
        let keys = ["/dtype", "/torch_dtype", "/text_config/dtype", "/text_config/torch_dtype"];
        let stated = keys.into_iter().find_map(hf_text)?;
        let name = stated.strip_prefix("torch.").unwrap_or(stated);
        PRECISIONS.iter().any(|(_, known)| *known == name).then(|| name.to_owned())
    };
    let tensors = Tensors::of(files);
    Facts {
        name: None,
        architecture: is_transformer.then(|| "transformer".to_owned()),
        family: hf_text("/model_type").map(str::to_owned),
        format: format(files),
        param_size: param_size(tensors.parameters),
        precision: tensors.precision().or_else(stated_precision),
        quantization: hf_text("/quantization_config/quant_method").map(str::to_owned),
    }
}

/// The name of the weights' format: `safetensors` if there are any, else that of the largest weight file. Docker Model
/// Runner knows the format by nothing else, so that wherever there are weights there is a word.
fn format(files: &[Surveyed<'_>]) -> Option<String> {
    let endings = files.iter().filter(|file| file.kind == Kind::Weight).map(|file| {
        let name = file.path.rsplit('/').next().unwrap_or(file.path);
        (file.size, name.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_lowercase()))
    });
    let rank = |(size, ending): &(u64, String)| (ending == "safetensors", !ending.is_empty(), *size);
    let (_, ending) = endings.max_by_key(rank)?;
    Some(match ending.as_str() {
        "" => "unknown".into(),
        "bin" | "pth" | "ckpt" => "pt".into(),
        other if other.starts_with("onnx_data") => "onnx".into(),
        other if other.starts_with("data-") || other == "index" => "tensorflow".into(),
        _ => ending,
    })
}

/// The tensors of all safetensors files together; a file that is there twice counts once.
struct Tensors<'a> {
    parameters: u64,
    dtypes: BTreeMap<&'a str, u64>,
}

/// Types of numbers: the safetensors format's name and the specification's.
const PRECISIONS: &[(&str, &str)] = &[
    ("BOOL", "bool"),
    ("U8", "uint8"),
    ("I8", "int8"),
    ("F8_E5M2", "float8_e5m2"),
    ("F8_E4M3", "float8_e4m3"),
    ("I16", "int16"),
    ("U16", "uint16"),
    ("F16", "float16"),
    ("BF16", "bfloat16"),
    ("I32", "int32"),
    ("U32", "uint32"),
    ("F32", "float32"),
    ("C64", "complex64"),
    ("F64", "float64"),
    ("I64", "int64"),
    ("U64", "uint64"),
];

impl<'a> Tensors<'a> {
    fn of(files: &[Surveyed<'a>]) -> Self {
        let mut tensors = Self { parameters: 0, dtypes: BTreeMap::new() };
        for summary in files.iter().filter_map(|file| file.safetensors) {
            tensors.parameters = tensors.parameters.saturating_add(summary.parameters);
            for (dtype, bytes) in &summary.dtypes {
                let sum = tensors.dtypes.entry(dtype).or_default();
                *sum = sum.saturating_add(*bytes);
            }
        }
        tensors
    }

    /// The types that the specification names, the one with the most bytes first.
    fn precision(&self) -> Option<String> {
        let mut types: Vec<_> = self
            .dtypes
            .iter()
            .filter_map(|(dtype, bytes)| {
                let (_, name) = PRECISIONS.iter().find(|(known, _)| known == dtype)?;
                Some((std::cmp::Reverse(*bytes), *name))
            })
            .collect();
        types.sort_unstable();
        let names: Vec<_> = types.into_iter().map(|(_, name)| name).collect();
        (!names.is_empty()).then(|| names.join(","))
    }
}

/// A number of parameters as the specification writes it: to one decimal, in the unit that leaves at most three digits
/// before it.
fn param_size(parameters: u64) -> Option<String> {
    if parameters == 0 {
        return None;
    }
    let tenths = |unit: u64| parameters.saturating_add(unit / 20) / (unit / 10);
    let (name, unit) = [("K", 1_000), ("M", 1_000_000), ("B", 1_000_000_000)]
        .into_iter()
        .find(|(_, unit)| tenths(*unit) < 10_000)
        .unwrap_or(("T", 1_000_000_000_000));
    // Less than fifty is still something.
    let tenths = tenths(unit).max(1);
    Some(match tenths % 10 {
        0 => format!("{}{name}", tenths / 10),
        rest => format!("{}.{rest}{name}", tenths / 10),
    })
}
