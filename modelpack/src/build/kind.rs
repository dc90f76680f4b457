//! What a file of a model is for, judged by its name alone.
//!
//! The tables are modctl's (`modctl modelfile generate`), shortened to what occurs beside models, with these
//! differences: tables of data are datasets, and a name that says nothing is code, whatever the file's size.

use crate::manifest::Kind;

/// Names that would be something else by their ending.
const CONFIG_NAMES: &[&str] =
    &["vocab.txt", "merges.txt", "added_tokens.txt", "special_tokens.txt", "config.pbtxt"];

const CONFIG_ENDINGS: &[&str] = &[
    "json",
    "jsonl",
    "json5",
    "jsonc",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "conf",
    "config",
    "properties",
    "xml",
    "jinja",
    "model",
    "tiktoken",
    "vocab",
    "hparams",
    "params",
    "modelcard",
];

const WEIGHT_ENDINGS: &[&str] = &[
    "safetensors",
    "bin",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "pt",
    "pth",
    "pt2",
    "ptl",
    "pte",
    "ckpt",
    "h5",
    "hdf5",
    "keras",
    "tflite",
    "pb",
    "msgpack",
    "npy",
    "npz",
    "pkl",
    "pickle",
    "joblib",
    "mar",
    "ot",
    "engine",
    "plan",
    "trt",
    "mlmodel",
    "llamafile",
    "dduf",
    "index",
];

const CODE_ENDINGS: &[&str] = &[
    "py", "pyi", "ipynb", "sh", "c", "cc", "cpp", "cu", "cuh", "h", "hpp", "go", "rs", "js", "ts", "java",
    "so",
];

const DATASET_ENDINGS: &[&str] = &["parquet", "arrow", "csv", "tsv"];

const DOC_ENDINGS: &[&str] = &[
    "md", "txt", "rst", "pdf", "html", "htm", "tex", "bib", "log", "png", "jpg", "jpeg", "gif", "svg",
    "webp", "bmp", "mp4",
];

const DOC_BEGINNINGS: &[&str] = &["license", "licence", "readme", "notice", "copying", "changelog"];

/// The kind of the file, or `None` if its name says nothing.
pub(super) fn known_kind(path: &str) -> Option<Kind> {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_shard = ending.starts_with("onnx_data") || ending.starts_with("data-");
    if CONFIG_NAMES.contains(&name.as_str()) || CONFIG_ENDINGS.contains(&ending) {
        Some(Kind::Config)
    } else if WEIGHT_ENDINGS.contains(&ending) || is_shard {
        Some(Kind::Weight)
    } else if CODE_ENDINGS.contains(&ending) {
        Some(Kind::Code)
    } else if name.starts_with("tokenizer") {
        Some(Kind::Config)
    } else if DATASET_ENDINGS.contains(&ending) {
        Some(Kind::Dataset)
    } else if DOC_ENDINGS.contains(&ending) || DOC_BEGINNINGS.iter().any(|start| name.starts_with(start)) {
        Some(Kind::Doc)
    } else {
        None
    }
}
