//! Modelfiles: read as modctl reads them, with the place of every mistake.

use modelpack::{
    manifest::Kind,
    modelfile::{Choice, Facts, Modelfile, Problem, without_time},
};
use proptest::prelude::*;

const TEXT: &str = "\
# Generated at 2026-01-02T03:04:05Z

# Model name
NAME llama
arch transformer
FAMILY llama3
format safetensors
PARAMSIZE 8B
PRECISION \"bfloat16,float32\"
QUANTIZATION awq

CONFIG config.json
  CONFIG tokenizer*.json\r
MODEL *.safetensors
CODE \"my code/run \\\"it\\\".py\"
DOC my\\ notes.md
DATASET data
MODEL *.safetensors
";

fn said_of(modelfile: &Modelfile) -> Vec<(Kind, &str)> {
    modelfile.choices.iter().map(|choice| (choice.kind, choice.pattern.as_str())).collect()
}

#[test]
fn all_twelve_directives_are_read() {
    let modelfile = Modelfile::parse(TEXT.as_bytes()).unwrap();
    let say = |text: &str| Some(text.to_owned());
    let facts = Facts {
        name: say("llama"),
        architecture: say("transformer"),
        family: say("llama3"),
        format: say("safetensors"),
        param_size: say("8B"),
        precision: say("bfloat16,float32"),
        quantization: say("awq"),
    };
    assert_eq!(modelfile.facts, facts);
    let expected = [
        (Kind::Config, "config.json"),
        (Kind::Config, "tokenizer*.json"),
        (Kind::Weight, "*.safetensors"),
        (Kind::Code, "my code/run \"it\".py"),
        (Kind::Doc, "my notes.md"),
        (Kind::Dataset, "data"),
    ];
    assert_eq!(said_of(&modelfile), expected);
    assert_eq!(Modelfile::parse(b"").unwrap(), Modelfile::default());
}

#[test]
fn mistakes_are_told_with_line_and_column() {
    let check = |text: &[u8], expect: &str| {
        let error = Modelfile::parse(text).unwrap_err();
        assert_eq!(error.to_string(), expect);
        assert!(error.hint().is_some());
    };
    check(b"NAME x\n\n  MODELX y\n", "line 3, column 3: `MODELX` is no directive");
    check(b"\tFROM x", "line 1, column 2: `FROM` is no directive");
    check(b"NAME", "line 1, column 1: `NAME` takes one argument, but there is none");
    check(b"NAME \"\"", "line 1, column 1: `NAME` takes one argument, but there is none");
    check(
        "NAME ü ö".as_bytes(),
        "line 1, column 8: `NAME` takes one argument, but there is a second one here",
    );
    check(b"MODEL \"a", "line 1, column 7: the quote is not complete at the end of the line");
    check(b"MODEL a\\", "line 1, column 8: the backslash is not complete at the end of the line");
    check(b"NAME a\nARCH b\nname c", "line 3, column 1: `NAME` was said on line 1 already");
    check(b"MODEL a/../b", "line 1, column 7: `a/../b` leads out of the model's directory");
    check(b"MODEL   /a", "line 1, column 9: `/a` is an absolute path");
    check(b"MODEL a[", "line 1, column 7: `a[` has a `[` that begins no class of characters");
    check(b"MODEL \"a\\\\\"", "line 1, column 7: `a\\\\` ends with a backslash");
    check(
        b"# \xff\n",
        "line 1, column 3: the file is not UTF-8 from here on, or has a control character here",
    );
    check(
        b"NAME x\nDOC a\0b",
        "line 2, column 6: the file is not UTF-8 from here on, or has a control character here",
    );
    check(
        &vec![b'#'; (1 << 20) + 1],
        "line 1, column 1: the file has 1048577 bytes, over the limit of 1048576",
    );
    let long = format!("MODEL {}", "a/".repeat(3000));
    let error = Modelfile::parse(long.as_bytes()).unwrap_err();
    assert!(matches!(error.problem, Problem::Pattern { .. }), "{error}");
}

#[test]
fn globs_follow_the_rules_of_filepath_match() {
    // The table of Go's own test, as far as it is about paths that can be below a directory.
    let table: &[(&str, &str, bool)] = &[
        ("abc", "abc", true),
        ("*", "abc", true),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*", "abc", true),
        ("a*/b", "abc/b", true),
        ("a*/b", "a/c/b", false),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^b-d]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("a[^a]b", "a☺b", true),
        ("a???b", "a☺b", false),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        ("a?b", "a/b", false),
        ("[\\-x]", "x", true),
        ("[\\-x]", "-", true),
        ("[x\\-]", "-", true),
        ("[x\\-]", "a", false),
        ("*x", "xxx", true),
        ("./a//b/", "a/b", true),
        (".", "a/b", true),
        ("a", "a/b/c", true),
        ("a", "ab", false),
        ("*", ".hidden", true),
        ("a/b", "a", false),
    ];
    for (pattern, path, is_taken) in table {
        let choices = vec![Choice { kind: Kind::Doc, pattern: (*pattern).to_owned(), place: None }];
        let modelfile = Modelfile { facts: Facts::default(), choices };
        let taken = modelfile.select(&[path]).map(|chosen| chosen.len());
        let expect = usize::from(*is_taken);
        assert_eq!(taken.unwrap_or(0), expect, "{pattern} of {path}");
    }
    for bad in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "[\\", "a/[b/c]"] {
        let text = format!("MODEL \"{}\"", bad.replace('\\', "\\\\"));
        assert!(Modelfile::parse(text.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn files_are_chosen_by_the_first_line_that_takes_them() {
    let paths = ["z.json", "a.json", "w/1.bin", "w/deep/2.bin", "data/train/x.csv", "notes"];
    let text = "CONFIG a.json\nCODE *.json\nMODEL w\nDATASET data/*\nDOC *.pdf\n";
    let chosen = Modelfile::parse(text.as_bytes()).unwrap().select(&paths).unwrap();
    let expected = [
        ("a.json", Kind::Config),
        ("data/train/x.csv", Kind::Dataset),
        ("w/1.bin", Kind::Weight),
        ("w/deep/2.bin", Kind::Weight),
        ("z.json", Kind::Code),
    ];
    assert_eq!(chosen, expected);
    let error = Modelfile::parse(b"DOC *.pdf\nMODEL absent.bin").unwrap().select(&paths).unwrap_err();
    assert_eq!(error.to_string(), "line 2, column 7: there is no `absent.bin` in the model's directory");
}

#[test]
fn the_time_of_generation_is_not_kept() {
    assert!(!without_time(TEXT).contains("2026"), "{}", without_time(TEXT));
    assert!(without_time(TEXT).starts_with("# Model name\nNAME llama\n"));
    assert_eq!(without_time("NAME x\n# note\n"), "NAME x\n# note\n");
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z0-9._-]{1,12}", "[ -~äß☺]{1,12}"]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Config, Kind::Weight, Kind::Code, Kind::Doc, Kind::Dataset])
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-z *?\\[\\]^#\"'-]{1,6}", 1..4)
        .prop_map(|parts| parts.join("/"))
        .prop_filter("a path", |path| modelpack::path::check(path).is_ok())
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        facts in prop::collection::vec(prop::option::of(word()), 7),
        files in prop::collection::btree_map(path(), kind(), 0..8),
    ) {
        let mut facts = facts.into_iter();
        let mut next = || facts.next().flatten();
        let facts = Facts {
            name: next(),
            architecture: next(),
            family: next(),
            format: next(),
            param_size: next(),
            precision: next(),
            quantization: next(),
        };
        let choices = files.iter().map(|(path, kind)| Choice::of_file(*kind, path)).collect();
        let written = Modelfile { facts, choices };
        let read = Modelfile::parse(written.text().as_bytes()).unwrap();
        prop_assert_eq!(&read.facts, &written.facts);
        prop_assert_eq!(said_of(&read), said_of(&written));
        prop_assert_eq!(read.text(), written.text());
        // Each file is taken by its own line, whatever characters it has.
        let paths: Vec<&str> = files.keys().map(String::as_str).collect();
        if modelpack::path::check_together(paths.iter().copied()).is_ok() {
            let chosen = read.select(&paths).unwrap();
            prop_assert_eq!(chosen.len(), paths.len());
            for (path, kind) in chosen {
                prop_assert_eq!(files[path], kind);
            }
        }
    }

    #[test]
    fn no_text_does_harm(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(modelfile) = Modelfile::parse(&raw) {
            let _ = modelfile.select(&["a", "b/c"]);
            prop_assert!(Modelfile::parse(modelfile.text().as_bytes()).is_ok());
        }
    }

    #[test]
    fn no_line_does_harm(lines in prop::collection::vec("(MODEL|code|NAME|#|) ?[\"\\\\\\[\\]*?^/.a-c -]{0,20}", 0..6)) {
        if let Ok(modelfile) = Modelfile::parse(lines.join("\n").as_bytes()) {
            let _ = modelfile.select(&["a", "b/c", ".a", "a b"]);
            let again = Modelfile::parse(modelfile.text().as_bytes()).unwrap();
            prop_assert_eq!(said_of(&again), said_of(&modelfile));
        }
    }
}
