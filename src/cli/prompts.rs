//! Prompts that follow from the subject's name and the motion's prompt.

/// What follows the first noun phrase of a motion prompt: `a man is playing guitar` -> `is playing guitar`. It starts
/// at the first form of "to be" or, failing that, at the first word that looks like a present participle. `None` if
/// there is neither.
pub fn motion_phrase(prompt: &str) -> Option<String> {
    let words: Vec<&str> = prompt.split_whitespace().collect();
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let to_be = |i: &usize| matches!(bare(words[*i]).as_str(), "is" | "are" | "was" | "were" | "am");
    // After an article it is an adjective: "a swimming shark".
    let acts =
        |i: &usize| is_participle(&bare(words[*i])) && !matches!(bare(words[i - 1]).as_str(), "a" | "an" | "the");
    let start = (1..words.len()).find(to_be).or_else(|| (1..words.len()).find(acts))?;
    let phrase = words[start..].join(" ");
    let phrase = phrase.trim_end_matches(['.', '!', ',', ';']).to_string();
    // A lone "is" says nothing of the motion.
    (bare(&phrase) != bare(words[start]) || is_participle(&bare(&phrase))).then_some(phrase)
}

fn is_participle(word: &str) -> bool {
    /// Nouns that end in -ing and begin many a clip's description.
    const NOUNS: [&str; 14] = [
        "king",
        "ring",
        "string",
        "spring",
        "thing",
        "wing",
        "ceiling",
        "building",
        "wedding",
        "painting",
        "viking",
        "sibling",
        "duckling",
        "something",
    ];
    word.len() > 4 && word.ends_with("ing") && !NOUNS.contains(&word)
}

/// `A teddy bear.`
pub fn spatial(subject: &str) -> String {
    format!("A {subject}.")
}

/// `teddy bear is playing guitar`: the student's prompt, and the video's unless given.
pub fn student(subject: &str, phrase: &str) -> String {
    format!("{subject} {phrase}")
}

/// `a teddy bear is sitting.`, one for each thing it may do.
pub fn appearance(subject: &str, doing: &[String]) -> Vec<String> {
    doing.iter().map(|d| format!("a {subject} is {d}.")).collect()
}

/// `a dog is playing guitar.`, one for each who may move.
pub fn motion(objects: &[String], phrase: &str) -> Vec<String> {
    objects.iter().map(|o| format!("{o} {phrase}.")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_motion_follows_the_first_noun_phrase() {
        for (prompt, phrase) in [
            ("a man is playing guitar", Some("is playing guitar")),
            ("A man is lifting weights.", Some("is lifting weights")),
            ("two old men are dancing on a stage", Some("are dancing on a stage")),
            ("a dog running", Some("running")),
            ("a man in a red hat playing guitar, slowly", Some("playing guitar, slowly")),
            ("a king was walking", Some("was walking")),
            ("a swimming shark", None),
            ("a swimming shark eating a fish", Some("eating a fish")),
            ("a building", None),
            ("a man plays guitar", None),
            ("a man is", None),
            ("", None),
            ("\u{718a}\u{304c}\u{8e0a}\u{308b}", None),
        ] {
            assert_eq!(motion_phrase(prompt).as_deref(), phrase, "{prompt:?}");
        }
    }

    #[test]
    fn derived_prompts_follow_the_paper() {
        assert_eq!(spatial("teddy bear"), "A teddy bear.");
        assert_eq!(student("teddy bear", "is playing guitar"), "teddy bear is playing guitar");
        assert_eq!(appearance("teddy bear", &["sitting".into()]), ["a teddy bear is sitting."]);
        assert_eq!(motion(&["a dog".into()], "is playing guitar"), ["a dog is playing guitar."]);
    }
}
