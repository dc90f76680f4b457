//! The config blob of a new artifact: what its files say of the model.
//!
//! Source: ModelPack specification 0.0.7, docs/config.md and schema/config-schema.json, which allows no other fields.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::{Options, SourceFile};
use crate::{document::to_bytes, manifest::Kind};

#[derive(Serialize)]
struct NewConfig<'a> {
    descriptor: ModelDescriptor<'a>,
    modelfs: ModelFs,
    config: Facts,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelDescriptor<'a> {
    created_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    param_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<String>,
}

/// The config of files that are already in layer order.
pub(super) fn config(files: &[(Kind, SourceFile)], options: &Options, created_at: &str) -> Vec<u8> {
    let hf_text = |pointer: &str| {
        let value = options.hf_config.as_ref().and_then(|config| config.pointer(pointer));
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
    to_bytes(&NewConfig {
        descriptor: ModelDescriptor {
            created_at,
            family: hf_text("/model_type"),
            name: options.name.as_deref().filter(|name| !name.is_empty()),
        },
        // Every layer is `raw`, so that its uncompressed digest is its digest.
        modelfs: ModelFs {
            r#type: "layers",
            diff_ids: files.iter().map(|(_, file)| file.digest.to_string()).collect(),
        },
        config: Facts {
            architecture: is_transformer.then_some("transformer"),
            format: format(files),
            param_size: param_size(tensors.parameters),
            precision: tensors.precision().or_else(stated_precision),
            quantization: hf_text("/quantization_config/quant_method").map(str::to_owned),
        },
    })
}

/// The name of the weights' format: `safetensors` if there are any, else that of the largest weight file.
fn format(files: &[(Kind, SourceFile)]) -> Option<String> {
    let endings = files.iter().filter(|(kind, _)| *kind == Kind::Weight).filter_map(|(_, file)| {
        let (_, ending) = file.path.rsplit_once('.')?;
        Some((file.size, ending.to_lowercase()))
    });
    let (_, ending) = endings.max_by_key(|(size, ending)| (ending == "safetensors", *size))?;
    Some(match ending.as_str() {
        "bin" | "pth" | "ckpt" => "pt".into(),
        other if other.starts_with("onnx_data") => "onnx".into(),
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
    fn of(files: &'a [(Kind, SourceFile)]) -> Self {
        let mut seen = BTreeSet::new();
        let mut tensors = Self { parameters: 0, dtypes: BTreeMap::new() };
        for (_, file) in files {
            let Some(summary) = &file.safetensors else { continue };
            if !seen.insert(file.digest) {
                continue;
            }
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
