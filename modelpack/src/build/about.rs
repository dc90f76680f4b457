//! What a publisher states of a model: where it is from, who made it, under which terms.
//!
//! Source: ModelPack specification 0.0.7, docs/config.md and schema/config-schema.json. Owns: these fields and what the
//! schema asks of them. Does not own: what is taken from the model's files.

use super::BuildError;
use crate::text::shown;

/// Statements of a publisher; each is written as given, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Who made it.
    pub authors: Vec<String>,
    /// SPDX identifiers of its licences.
    pub licenses: Vec<String>,
    /// The languages that it speaks, as two letters of ISO 639.
    pub languages: Vec<String>,
    /// Its version.
    pub version: Option<String>,
    /// What people call it.
    pub title: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Who distributes it.
    pub vendor: Option<String>,
    /// Where it is documented.
    pub doc_url: Option<String>,
    /// Where it comes from.
    pub source_url: Option<String>,
    /// Which revision of that it is.
    pub revision: Option<String>,
}

impl About {
    /// What the schema refuses, or what would say nothing.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let refuse =
            |what, value: &str, allowed| Err(BuildError::About { what, value: shown(value), allowed });
        for language in &self.languages {
            if language.len() != 2 || !language.bytes().all(|b| b.is_ascii_lowercase()) {
                return refuse("the language", language, "two lower-case letters, such as `en`");
            }
        }
        for license in &self.licenses {
            // The grammar of SPDX expressions, without its list of names, which grows.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.+:() ".contains(c);
            if license.trim().is_empty() || !license.chars().all(is_plain) {
                return refuse("the licence", license, "an SPDX identifier, such as `Apache-2.0`");
            }
        }
        let lists = self.authors.iter().map(|author| ("the author", author));
        let single = [
            ("the version", &self.version),
            ("the title", &self.title),
            ("the description", &self.description),
            ("the vendor", &self.vendor),
            ("the documentation's URL", &self.doc_url),
            ("the source's URL", &self.source_url),
            ("the revision", &self.revision),
        ];
        let single = single.into_iter().filter_map(|(what, value)| Some((what, value.as_ref()?)));
        for (what, value) in lists.chain(single) {
            if value.trim().is_empty() || value.chars().any(|c| c.is_control() && c != '\n') {
                return refuse(what, value, "text");
            }
        }
        Ok(())
    }
}
