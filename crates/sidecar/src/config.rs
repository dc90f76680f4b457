//! What a sidecar is told in a file.
//!
//! Owns: its grammar (TOML; unknown keys are errors). Does not own: how registries and the fleet are reached, which is
//! said by flags, once for all models.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use modelpack::{
    manifest::Kind,
    reference::Reference,
    selection::{Selection, SelectionError},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::error::SidecarError;

/// All that the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often each tag is looked at.
    #[serde(default, deserialize_with = "duration")]
    pub poll: Option<Duration>,
    /// Where it answers over HTTP.
    pub http_listen: Option<SocketAddr>,
    /// The models.
    #[serde(default, rename = "model")]
    pub models: Vec<ModelConfig>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The artifact.
    #[serde(deserialize_with = "reference")]
    pub reference: Reference,
    /// Where servers open it.
    pub directory: PathBuf,
    /// How many former versions stay.
    #[serde(default = "keep")]
    pub keep: usize,
    /// Patterns of which each of its files matches one; none: every file.
    #[serde(default)]
    pub include: Vec<String>,
    /// Patterns of which none of its files matches one.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What its files are for; none: anything.
    #[serde(default, deserialize_with = "kinds")]
    pub kind: Vec<Kind>,
    /// The Triton server that serves it.
    pub triton: Option<TritonConfig>,
    /// The vLLM server that serves it.
    pub vllm: Option<VllmConfig>,
    /// The SGLang server that serves it.
    pub sglang: Option<EngineConfig>,
}

/// A Triton server in explicit mode.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TritonConfig {
    /// Where it answers over HTTP.
    #[serde(deserialize_with = "url")]
    pub url: String,
    /// Its model repository.
    pub repository: PathBuf,
    /// The model's name there; else that of the directory.
    pub name: Option<String>,
    /// Files that the artifact lacks: `config.pbtxt`, and what belongs into the version's directory.
    pub template: Option<PathBuf>,
    /// How long it may take to load a version.
    #[serde(default = "ten_minutes", deserialize_with = "some_duration")]
    pub load_timeout: Duration,
}

/// A vLLM server in development mode with sleep mode.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VllmConfig {
    /// Where it answers over HTTP.
    #[serde(deserialize_with = "url")]
    pub url: String,
    /// How long one step may take.
    #[serde(default = "ten_minutes", deserialize_with = "some_duration")]
    pub timeout: Duration,
}

/// An SGLang server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Where it answers over HTTP.
    #[serde(deserialize_with = "url")]
    pub url: String,
    /// The model's directory as that server sees it; else as this process does.
    pub model_path: Option<PathBuf>,
    /// How long one step may take.
    #[serde(default = "ten_minutes", deserialize_with = "some_duration")]
    pub timeout: Duration,
}

impl ModelConfig {
    /// A model that no server is told of.
    pub fn new(reference: Reference, directory: PathBuf) -> Self {
        Self {
            reference,
            directory,
            keep: keep(),
            include: Vec::new(),
            exclude: Vec::new(),
            kind: Vec::new(),
            triton: None,
            vllm: None,
            sglang: None,
        }
    }

    /// Which of the artifact's files are wanted.
    pub fn selection(&self) -> Result<Selection, SelectionError> {
        Selection::new(&self.include, &self.exclude, &self.kind)
    }
}

impl Config {
    /// Reads a file.
    pub fn load(file: &Path) -> Result<Self, SidecarError> {
        let text = fs::read_to_string(file).map_err(SidecarError::io("read", file))?;
        Self::parse(&text).map_err(|reason| SidecarError::Config { file: file.display().to_string(), reason })
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| located(text, &error))?;
        if config.models.is_empty() {
            return Err("it names no `[[model]]`".to_owned());
        }
        for (number, model) in config.models.iter().enumerate() {
            model.selection().map_err(|error| error.to_string())?;
            let servers = [model.triton.is_some(), model.vllm.is_some(), model.sglang.is_some()];
            if servers.iter().filter(|is_there| **is_there).count() > 1 {
                return Err(format!("`{}` has more than one server", model.directory.display()));
            }
            if config.models[..number].iter().any(|other| other.directory == model.directory) {
                return Err(format!("two models have the directory `{}`", model.directory.display()));
            }
        }
        Ok(config)
    }
}

/// Line and column, and what is wrong there.
fn located(text: &str, error: &toml::de::Error) -> String {
    let what = error.message().trim_end().replace('\n', ", ");
    let Some(span) = error.span() else { return what };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    format!("line {line}, column {column}: {what}")
}

fn keep() -> usize {
    1
}

fn ten_minutes() -> Duration {
    Duration::from_mins(10)
}

fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
    let text = String::deserialize(deserializer)?;
    let reference = text.parse::<Reference>().map_err(D::Error::custom)?;
    if matches!(reference, Reference::Directory(_)) {
        return Err(D::Error::custom("a plain directory is no artifact"));
    }
    Ok(reference)
}

fn kinds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Kind>, D::Error> {
    let all = [Kind::Config, Kind::Weight, Kind::Code, Kind::Doc, Kind::Dataset];
    let kind = |text: String| {
        let found = all.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| {
            let names = all.map(|kind| format!("`{kind}`")).join(", ");
            D::Error::custom(format!("`{text}` is none of {names}"))
        })
    };
    Vec::<String>::deserialize(deserializer)?.into_iter().map(kind).collect()
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong =
        |error: &dyn fmt::Display| D::Error::custom(format!("`{text}` is no time such as `30s`: {error}"));
    let found = humantime::parse_duration(&text).map_err(|error| wrong(&error))?;
    if found.is_zero() { Err(wrong(&"it is nothing")) } else { Ok(found) }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    some_duration(deserializer).map(Some)
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.strip_prefix("http://") {
        Some(host) if !host.is_empty() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(D::Error::custom(format!("`{text}` is not `http://HOST:PORT`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
poll = "30s"
http_listen = "127.0.0.1:7300"

[[model]]
reference = "registry.example.org/models/chat:stable"
directory = "/models/chat"
keep = 2
exclude = ["*.bin"]
kind = ["weight", "config"]

[model.triton]
url = "http://127.0.0.1:8000/"
repository = "/models/triton"
"#;

    #[test]
    fn a_whole_file_is_understood() {
        let config = Config::parse(WHOLE).unwrap();
        assert_eq!(config.poll, Some(Duration::from_secs(30)));
        let selection = config.models[0].selection().unwrap().to_string();
        assert_eq!(selection, "--exclude *.bin --kind config --kind weight");
        let triton = config.models[0].triton.as_ref().unwrap();
        assert_eq!(
            (triton.url.as_str(), triton.load_timeout),
            ("http://127.0.0.1:8000", Duration::from_mins(10))
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let check = |from: &str, to: &str, expected: &str| {
            let error = Config::parse(&WHOLE.replace(from, to)).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        };
        check("keep = 2", "keeps = 2", "line 8, column 1: unknown field `keeps`");
        check("\"30s\"", "\"30\"", "line 2, column 8: `30` is no time such as `30s`");
        check("\"30s\"", "\"0s\"", "line 2, column 8: `0s` is no time");
        check("registry.example.org/", "", "line 6, column 13: reference `models/chat:stable`");
        check(
            "http://127.0.0.1:8000/",
            "https://a",
            "line 13, column 7: `https://a` is not `http://HOST:PORT`",
        );
        check("\"weight\"", "\"weights\"", "line 10, column 8: `weights` is none of `config`");
        check("*.bin", "[", "the pattern `[` is malformed");
        check(WHOLE, "", "it names no `[[model]]`");
        let both = format!("{WHOLE}[model.vllm]\nurl = \"http://a:1\"\n");
        assert_eq!(Config::parse(&both).unwrap_err(), "`/models/chat` has more than one server");
        let twice = format!("{WHOLE}[[model]]\nreference = \"a.b/c:d\"\ndirectory = \"/models/chat\"\n");
        assert_eq!(Config::parse(&twice).unwrap_err(), "two models have the directory `/models/chat`");
    }
}
