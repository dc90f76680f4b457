//! Which artifact of a registry a model of the hub is.
//!
//! Owns: the rule that a user gives. Does not own: asking the registry.

use std::str::FromStr;

use modelpack::reference::{Reference, RegistryReference};

/// Where a model's name goes in.
const ID: &str = "{id}";
/// Where its revision goes in.
const REVISION: &str = "{rev}";

/// `HOST/REPO:TAG` with `{id}` and `{rev}` in it: the model `{id}` (`ORG/NAME`, in lower case as repositories are) at revision
/// `{rev}` is that artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `HOST[:PORT]`.
    registry: String,
    template: String,
}

impl Rule {
    /// The registry that has the models: `HOST[:PORT]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository and tag of a model at a revision; `None` where those make no reference.
    pub(super) fn apply(&self, id: &str, revision: &str) -> Option<(String, String)> {
        let text = self.template.replace(ID, &id.to_lowercase()).replace(REVISION, revision);
        match text.parse().ok()? {
            Reference::Registry(RegistryReference { repository, tag: Some(tag), digest: None, registry })
                if registry == self.registry =>
            {
                Some((repository, tag))
            }
            _ => None,
        }
    }
}

impl FromStr for Rule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.matches(ID).count() != 1 || text.matches(REVISION).count() > 1 {
            return Err("it has `{id}` once, and `{rev}` at most once");
        }
        let why =
            "it is HOST/REPO:TAG with `{id}` and `{rev}` in it, as in `registry.example.org/hub/{id}:{rev}`";
        let registry = text.split_once('/').ok_or(why)?.0.to_owned();
        let rule = Self { registry, template: text.to_owned() };
        if rule.apply("org/name", "main").is_none() { Err(why) } else { Ok(rule) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_an_artifact_by_the_rule() {
        let rule: Rule = "r.io:5000/hub/{id}:{rev}".parse().unwrap();
        let at = |repository: &str, tag: &str| Some((repository.to_owned(), tag.to_owned()));
        assert_eq!(rule.registry(), "r.io:5000");
        assert_eq!(rule.apply("Qwen/Qwen3-0.6B", "main"), at("hub/qwen/qwen3-0.6b", "main"));
        assert_eq!(rule.apply("gpt2", "v1.0"), at("hub/gpt2", "v1.0"));
        // Whatever is in a name leads to no other registry and no other repository than one of that name.
        for (id, revision) in [
            ("../x", "main"),
            ("a b", "main"),
            ("a", "refs/pr/1"),
            ("a", ""),
            ("a", "v@b"),
            ("a:b/c", "main"),
        ] {
            assert_eq!(rule.apply(id, revision), None, "{id} {revision}");
        }
        let fixed: Rule = "localhost/{id}:latest".parse().unwrap();
        assert_eq!(fixed.apply("a/b", "main"), at("a/b", "latest"));
        for wrong in ["r.io/hub:{rev}", "{id}:{rev}", "r.io/{id}", "r.io/{id}/{id}:x", "hub/{id}:{rev}"] {
            wrong.parse::<Rule>().unwrap_err();
        }
    }
}
