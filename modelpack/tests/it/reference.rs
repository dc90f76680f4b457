//! References: what is read, what is refused, and what the user is told.

use modelpack::{digest::Sha256Digest, reference::Reference};
use proptest::prelude::*;

use crate::support::shown;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[track_caller]
fn registry(text: &str, host: &str, repository: &str, tag: Option<&str>, has_digest: bool) {
    let Reference::Registry(found) = text.parse().unwrap() else { panic!("`{text}` is in a registry") };
    let digest = has_digest.then(|| DIGEST.parse::<Sha256Digest>().unwrap());
    assert_eq!(
        (found.registry.as_str(), found.repository.as_str(), found.tag.as_deref(), found.digest),
        (host, repository, tag, digest)
    );
    assert_eq!(found.to_string(), text);
}

#[track_caller]
fn refused(text: &str, message: &str, hint: &str) {
    let error = text.parse::<Reference>().unwrap_err();
    assert_eq!((shown(&error).as_str(), error.hint().as_deref()), (message, Some(hint)), "`{text}`");
}

#[test]
fn registries() {
    registry("docker.io/ai/llama:v1", "docker.io", "ai/llama", Some("v1"), false);
    registry("localhost/llama:v1", "localhost", "llama", Some("v1"), false);
    registry(
        "localhost:5000/a/b__c/d--e.f_g:V.1-x_",
        "localhost:5000",
        "a/b__c/d--e.f_g",
        Some("V.1-x_"),
        false,
    );
    registry("registry:5000/llama:v1", "registry:5000", "llama", Some("v1"), false);
    registry("[::1]:5000/llama:v1", "[::1]:5000", "llama", Some("v1"), false);
    registry(&format!("r.io/llama@{DIGEST}"), "r.io", "llama", None, true);
    registry(&format!("r.io/llama:v1@{DIGEST}"), "r.io", "llama", Some("v1"), true);
}

#[test]
fn layouts() {
    let layout = |text: &str| {
        let Reference::Layout(found) = text.parse().unwrap() else { panic!("`{text}` is a layout") };
        assert_eq!(found.to_string(), text);
        (found.dir.to_str().unwrap().to_owned(), found.tag, found.digest.is_some())
    };
    assert_eq!(layout("oci:out"), ("out".into(), None, false));
    assert_eq!(layout("oci:out:v1"), ("out".into(), Some("v1".into()), false));
    assert_eq!(layout("oci:/a:b/me@home/out:v1"), ("/a:b/me@home/out".into(), Some("v1".into()), false));
    assert_eq!(layout("oci:/a:b/me@home"), ("/a:b/me@home".into(), None, false));
    assert_eq!(layout(&format!("oci:../out@{DIGEST}")), ("../out".into(), None, true));
}

#[test]
fn directories() {
    for text in ["/models/llama", "./llama:v1", "../llama@x", ".", ".."] {
        let found: Reference = text.parse().unwrap();
        assert_eq!(found, Reference::Directory(text.into()));
        assert_eq!(found.to_string(), text);
    }
}

#[test]
fn models_on_a_hub() {
    let hub = |text: &str| {
        let Reference::Hub(found) = text.parse().unwrap() else { panic!("`{text}` is on a hub") };
        assert_eq!(found.to_string(), text);
        (found.model(), found.revision().to_owned())
    };
    assert_eq!(hub("hf://Qwen/Qwen2.5-0.5B"), ("Qwen/Qwen2.5-0.5B".into(), "main".into()));
    assert_eq!(hub("hf://org/name@v1.0"), ("org/name".into(), "v1.0".into()));
    assert_eq!(hub("hf://org/na_me@refs/pr/1"), ("org/na_me".into(), "refs/pr/1".into()));
    let long = "n".repeat(97);
    for text in [
        "hf://",
        "hf://org",
        "hf://org/",
        "hf:///name",
        "hf://org/name/file",
        "hf://org/..",
        "hf://../name",
        "hf://org/a--b",
        "hf://org/a..b",
        "hf://org/-a",
        "hf://org/a.",
        "hf://org/a.git",
        "hf://org/a b",
        "hf://org/a?b",
        "hf://org/é",
        "hf://org/name:v1",
        "hf://org/name@a b",
        "hf://org/name@../x",
        "hf://org/name@/x",
        "hf://org/name@x/",
        "hf://org/name@.x",
        "hf://org/name@a//b",
        "hf://org/name@-x",
        "hf://org/name@a..b",
        "hf://org/name@x.lock",
        "hf://org/name@@",
        "hf://org/name@a\\b",
        &format!("hf://org/{long}"),
    ] {
        assert!(text.parse::<Reference>().is_err(), "`{text}`");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let host = |text: &str| format!("reference `{text}` does not start with the host of a registry");
    refused(
        "meta/llama:v1",
        &host("meta/llama:v1"),
        "there is no default registry: write `docker.io/meta/llama:v1` for Docker Hub, or `./PATH` for a directory",
    );
    refused(
        "llama",
        &host("llama"),
        "there is no default registry: write `docker.io/OWNER/NAME:TAG` for Docker Hub, or `./PATH` for a directory",
    );
    refused(
        "r.io/llama",
        "reference `r.io/llama` has neither tag nor digest",
        "add a tag, as in `r.io/llama:v1`",
    );
    refused(
        "https://r.io/llama:v1",
        "reference `https://r.io/llama:v1` is a URL",
        "write `r.io/llama:v1`, without the scheme",
    );
    refused(
        "me:secret@r.io/llama:v1",
        "a reference must not contain a user name or password",
        "store credentials with `docker login HOST`",
    );
    refused(
        "r.io/Meta/Llama:v1",
        "`Meta/Llama` is not the name of a repository",
        "names of repositories are lower-case: `meta/llama`",
    );
    refused(
        "r.io/llama:-v1",
        "`-v1` is not a tag",
        "a tag has at most 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two",
    );
    refused(
        "r.io/llama@sha512:00",
        "reference `r.io/llama@sha512:00` has an unusable digest\ndigest `sha512:00` does not use the algorithm `sha256`",
        "use the artifact's `sha256:` digest",
    );
    refused(
        "r.io/llama@sha256:00",
        "reference `r.io/llama@sha256:00` has an unusable digest\ndigest `00` is not 64 lower-case hexadecimal characters",
        "a digest is `sha256:` and 64 lower-case hexadecimal characters",
    );
    refused(
        "fleet:v1",
        "reference `fleet:v1` has an unusable digest\ndigest `v1` does not use the algorithm `sha256`",
        "use the artifact's `sha256:` digest",
    );
    refused(
        "oci::v1",
        "reference `oci::v1` names no directory",
        "name the directory of the layout, as in `oci:./models:v1`",
    );
    refused(
        &format!("oci:out:v1@{DIGEST}"),
        &format!("reference `oci:out:v1@{DIGEST}` has both tag and digest"),
        "leave the tag away: the digest says everything",
    );
}

#[test]
fn refusals_of_models_on_a_hub_say_what_to_do() {
    refused(
        "hf://gpt2",
        "`hf://gpt2` is not a model on a hub",
        "write `hf://ORG/NAME`, or `hf://ORG/NAME@REVISION`",
    );
    refused(
        "hf://datasets/org/name",
        "`hf://datasets/org/name` is not a model on a hub",
        "only models are read from a hub, as `hf://ORG/NAME`",
    );
    refused(
        "hf://org/name@",
        "`` is not a revision",
        "a revision is a branch, a tag or a commit, as in `hf://ORG/NAME@main`",
    );
}

#[test]
fn what_no_registry_accepts_is_refused() {
    let long = format!("r.io/{}:v1", "a".repeat(256));
    let tag = format!("r.io/a:{}", "t".repeat(129));
    for text in [
        "",
        "/",
        ":",
        "@",
        "r.io/:v1",
        "r.io//a:v1",
        "r.io/a/:v1",
        "r.io/a..b:v1",
        "r.io/a___b:v1",
        "r.io/-a:v1",
        "r.io/a-:v1",
        "r.io/a b:v1",
        "r.io/a:v1:v2",
        "r.io/a:",
        "r.io/a@",
        "-r.io/a:v1",
        "r-.io/a:v1",
        "r..io/a:v1",
        "r.io:/a:v1",
        "r.io:0/a:v1",
        "r.io:65536/a:v1",
        "r.io:+1/a:v1",
        "r_x.io/a:v1",
        "[::1/a:v1",
        "[x]/a:v1",
        "oci:",
        "oci:out:",
        "oci:out@sha256:",
        long.as_str(),
        tag.as_str(),
    ] {
        let found = text.parse::<Reference>();
        assert!(found.is_err() || text == "/", "`{text}` is {found:?}");
    }
}

proptest! {
    #[test]
    fn never_panics_and_round_trips(text in "(oci:|r\\.io/|hf://o/|)[a-zA-Z0-9:@/._\\-é\\[\\]]{0,24}") {
        if let Ok(found) = text.parse::<Reference>() {
            prop_assert_eq!(found.to_string().parse::<Reference>().unwrap(), found);
        }
    }
}
