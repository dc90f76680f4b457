//! The conventions by which a user tells every tool about the hub.
//!
//! Source: `huggingface_hub` 2.4, `constants.py` and `utils/_auth.py`. Owns: the environment variables and the file with
//! the token. Does not own: what they are used for.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{credentials::warn_if_open_to_all, error::RegistryError};

/// The hub that is meant where none is named.
const ENDPOINT: &str = "https://huggingface.co";

/// More than any token has.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// How a hub is reached, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct HubAccess {
    /// Its URL.
    pub endpoint: String,
    /// Who asks, if somebody in particular.
    pub token: Option<String>,
    /// The cache that all tools of this user share, if it may be read.
    pub cache: Option<PathBuf>,
    /// Nothing may be asked of the hub: only the cache is read.
    pub is_offline: bool,
}

impl Default for HubAccess {
    fn default() -> Self {
        Self { endpoint: ENDPOINT.to_owned(), token: None, cache: None, is_offline: false }
    }
}

impl fmt::Debug for HubAccess {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HubAccess");
        debug.field("endpoint", &self.endpoint).field("cache", &self.cache);
        debug.field("is_offline", &self.is_offline).finish_non_exhaustive()
    }
}

impl HubAccess {
    /// As the environment says: `HF_ENDPOINT`; `HF_TOKEN`, or the file that `hf auth login` writes; `HF_HUB_CACHE` and
    /// `HF_HOME`; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// The file with the token is there and cannot be read.
    pub fn from_env() -> Result<Self, RegistryError> {
        Self::of(|name| env::var_os(name), env::home_dir().as_deref())
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<Self, RegistryError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(|value| below_home(PathBuf::from(value), home));
        let is_set = |name: &str| text(name).is_some_and(|value| is_true(&value));
        let user_cache = path("XDG_CACHE_HOME").or_else(|| home.map(|home| home.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| user_cache.map(|cache| cache.join("huggingface")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|home| home.join("token")));
        let stated = || clean(&text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"))?);
        let token = match (is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"), stated(), token_file) {
            (true, ..) => None,
            (false, None, Some(file)) => read_token(&file)?,
            (false, stated, _) => stated,
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token,
            cache: cache.or_else(|| hf_home.map(|home| home.join("hub"))),
            is_offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
        })
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// `~` stands for the user's own directory.
fn below_home(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

fn clean(token: &str) -> Option<String> {
    Some(token.replace(['\r', '\n'], "").trim().to_owned()).filter(|token| !token.is_empty())
}

fn read_token(path: &Path) -> Result<Option<String>, RegistryError> {
    let failed = |source| RegistryError::Credentials { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > TOKEN_BYTES_MAX => {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "too large for a token")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let token = clean(&fs::read_to_string(path).map_err(failed)?);
    if token.is_some() {
        warn_if_open_to_all(path);
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], home: &Path) -> Result<HubAccess, RegistryError> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        HubAccess::of(variable, Some(home))
    }

    #[test]
    fn follows_the_conventions() {
        let home = tempfile::tempdir().unwrap();
        let of = |variables: &[(&str, &str)]| settings(variables, home.path()).unwrap();
        let plain = of(&[]);
        assert_eq!((plain.endpoint.as_str(), &plain.token, plain.is_offline), (ENDPOINT, &None, false));
        assert_eq!(plain.cache.unwrap(), home.path().join(".cache/huggingface/hub"));
        assert_eq!(of(&[("XDG_CACHE_HOME", "/c")]).cache.unwrap(), Path::new("/c/huggingface/hub"));
        assert_eq!(of(&[("HF_HOME", "~/hf")]).cache.unwrap(), home.path().join("hf/hub"));
        assert_eq!(of(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache.unwrap(), Path::new("/c"));
        assert_eq!(of(&[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m/");
        for (value, is_offline) in [("1", true), ("true", true), ("On", true), ("0", false), ("", false)] {
            assert_eq!(of(&[("HF_HUB_OFFLINE", value)]).is_offline, is_offline, "{value}");
        }
    }

    #[test]
    fn finds_the_token_where_others_do() {
        let home = tempfile::tempdir().unwrap();
        let of = |variables: &[(&str, &str)]| settings(variables, home.path());
        let token = |variables: &[(&str, &str)]| of(variables).unwrap().token;
        fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        assert_eq!(token(&[]), None);
        fs::write(home.path().join(".cache/huggingface/token"), "hf_file\n").unwrap();
        assert_eq!(token(&[]).unwrap(), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", " hf_env\n")]).unwrap(), "hf_env");
        assert_eq!(token(&[("HF_TOKEN_PATH", "/none")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "x")]), None);
        let shown = format!("{:?}", of(&[]).unwrap());
        assert!(!shown.contains("hf_file"), "{shown}");
        fs::write(home.path().join("large"), vec![b'x'; 100_000]).unwrap();
        assert!(of(&[("HF_TOKEN_PATH", home.path().join("large").to_str().unwrap())]).is_err());
    }
}
