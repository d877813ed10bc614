//! CLIP's tokenizer files, derived from its list of merges.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::write_text;
use crate::Result;

const MERGES: &str = include_str!("../../model/clip_merges.txt");
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Writes the four files of a Stable Diffusion 1.5 tokenizer folder; the folder must exist.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn write_tokenizer(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    let token = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let added = |content: &str| {
        let mut token = token(content);
        token["__type"] = "AddedToken".into();
        token
    };
    write_text(&dir.join("merges.txt"), MERGES)?;
    write_text(&dir.join("vocab.json"), &Value::from(vocabulary()).to_string())?;
    let special =
        json!({"bos_token": token(START), "eos_token": token(END), "pad_token": END, "unk_token": token(END)});
    write_text(&dir.join("special_tokens_map.json"), &special.to_string())?;
    let config = json!({
        "add_prefix_space": false,
        "bos_token": added(START),
        "do_lower_case": true,
        "eos_token": added(END),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added(END),
    });
    write_text(&dir.join("tokenizer_config.json"), &config.to_string())
}

/// The 256 byte letters, the same at the end of a word, every merge in order, and the two special tokens.
fn vocabulary() -> Map<String, Value> {
    let letters: Vec<String> = byte_letters().map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = MERGES.lines().filter(|line| !line.starts_with("#version")).map(|line| line.replace(' ', ""));
    let words = letters.iter().cloned().chain(ends).chain(merged).chain([START.to_string(), END.to_string()]);
    words.zip(0..).map(|(word, id): (String, u32)| (word, id.into())).collect()
}

/// A printable letter for every byte: itself where it is printable, else the next free one from U+0100.
fn byte_letters() -> impl Iterator<Item = char> {
    let printable = || (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).map(char::from);
    printable().chain((0x100..0x100 + (256 - printable().count() as u32)).filter_map(char::from_u32))
}
