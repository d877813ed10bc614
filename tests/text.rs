//! The tokenizer against transformers' ids for hostile strings, and against strings of its own.

use std::time::Instant;

use customttt::Error;
use customttt::data::{Tokenizer, init};
use serde_json::Value;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    init::write_tokenizer(dir.path()).unwrap();
    dir
}

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokens.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn ids_equal_those_of_transformers() {
    let dir = folder();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 400);
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let want: Vec<u64> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let got: Vec<u64> = tokenizer.encode(text).unwrap().ids.into_iter().map(u64::from).collect();
        if got != want {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), cases.len());
}

#[test]
fn written_files_are_those_of_the_fixture() {
    let dir = folder();
    let fixture = fixture();
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(dir.path().join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("special_tokens_map.json"), fixture["special_tokens_map"]);
    let (ours, theirs) = (read("tokenizer_config.json"), &fixture["tokenizer_config"]);
    for (key, value) in ours.as_object().unwrap() {
        assert_eq!(value, &theirs[key], "{key}");
    }
    let vocab = read("vocab.json");
    assert_eq!(vocab.as_object().unwrap().len(), 49408);
    assert_eq!([&vocab["!"], &vocab["a</w>"], &vocab["<|endoftext|>"]], [0, 320, 49407]);
}

#[test]
fn what_is_cut_off_is_said() {
    let dir = folder();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let fits = "word ".repeat(75);
    assert_eq!(tokenizer.encode(&fits).unwrap().truncated, None);
    let long = tokenizer.encode(&format!("{fits}the  End")).unwrap();
    assert_eq!(long.truncated.as_deref(), Some("the  End"));
    assert_eq!((long.ids.len(), long.ids[76]), (77, 49407));
    let inside = tokenizer.encode(&"😀".repeat(200)).unwrap();
    assert!(inside.truncated.unwrap().starts_with('😀'));
}

#[test]
fn huge_and_odd_prompts_are_quick() {
    let dir = folder();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let million = 1_000_000;
    for text in [
        String::new(),
        "\0".into(),
        "\u{202e}abc\u{202c}\u{2066}".into(),
        "a".repeat(million),
        "a ".repeat(million / 2),
        " ".repeat(million),
        "\u{301}".repeat(million / 2),
        "<|endoftext|>".repeat(million / 13),
        "\0\u{feff}😀'".repeat(million / 9),
        "xq".repeat(million / 2),
        "1!".repeat(million / 2),
    ] {
        let start = Instant::now();
        let encoded = tokenizer.encode(&text).unwrap();
        let took = start.elapsed();
        assert_eq!(encoded.ids.len(), 77);
        assert!(took.as_millis() < 2000, "{:?}... took {took:?}", text.chars().take(4).collect::<String>());
        if let Some(rest) = encoded.truncated {
            assert!(text.ends_with(&rest), "what is cut off is the end");
        }
    }
}

#[test]
fn ids_length_and_padding_come_from_the_files() {
    let dir = folder();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("special_tokens_map.json", r#"{"pad_token": "!"}"#);
    write("tokenizer_config.json", r#"{"model_max_length": 10}"#);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("a").unwrap().ids, [49406, 320, 49407, 0, 0, 0, 0, 0, 0, 0]);
    // A plain string is matched before lowercasing.
    assert_eq!(tokenizer.encode("<|STARTOFTEXT|>").unwrap().ids[1], 27);

    write("special_tokens_map.json", r#"{"pad_token": "no such word"}"#);
    let error = Tokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Model { .. }) && error.to_string().contains("no such word"), "{error}");
    write("special_tokens_map.json", "{}");
    write("merges.txt", "a b c\nx");
    assert!(Tokenizer::open(dir.path()).is_err());
    write("merges.txt", "nosuch pair\n");
    assert!(Tokenizer::open(dir.path()).is_err());
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::Io { .. })));
}

#[test]
fn the_joint_file_of_recent_versions_gives_the_same() {
    let dir = folder();
    let plain = Tokenizer::open(dir.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let vocab: Value = serde_json::from_str(&read("vocab.json")).unwrap();
    let merges: Vec<Value> =
        read("merges.txt").lines().skip(1).map(|l| l.split(' ').collect::<Vec<_>>().into()).collect();
    let token = |content: &str, normalized: bool| serde_json::json!({"id": 0, "content": content, "normalized": normalized, "special": true});
    let joint = serde_json::json!({
        "added_tokens": [token("<|startoftext|>", true), token("<|endoftext|>", false)],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("tokenizer.json"), joint.to_string()).unwrap();
    let joint = Tokenizer::open(other.path()).unwrap();
    for text in ["A teddy bear.", "<|STARTOFTEXT|> <|ENDOFTEXT|> <|endoftext|>", "naïve café 😀"] {
        assert_eq!(plain.encode(text).unwrap(), joint.encode(text).unwrap());
    }
}
