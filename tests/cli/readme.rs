//! The commands of the README are commands of the program.

use super::*;

/// The lines of the shell blocks that begin with the program's name, continued lines joined.
fn commands() -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("there should be a README").replace("\\\n", " ");
    let shell = text.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let lines = shell.flat_map(str::lines).map(|l| l.split(" #").next().unwrap_or("").trim());
    let ours = lines.filter_map(|l| l.strip_prefix("customttt ").or(l.strip_prefix("cargo run --release -- ")));
    ours.map(words).collect()
}

/// Splits as a shell does where only double quotes are used.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        match i % 2 {
            0 => all.extend(part.split_whitespace().map(String::from)),
            _ => all.push(part.to_string()),
        }
    }
    all
}

#[test]
fn every_command_of_the_readme_parses() {
    let commands = commands();
    assert!(commands.len() >= 4, "the README should show commands, not {commands:?}");
    assert!(commands.iter().any(|c| c[0] == "demo") && commands.iter().any(|c| c[0] == "run"));
    let dir = Dir::new();
    for mut command in commands {
        if command[0] == "demo" {
            command.push("--help".into());
        }
        // Its files are not here, which is another error than a flag or a setting that does not exist.
        let output =
            program(&command.iter().map(String::as_str).collect::<Vec<_>>()).current_dir(dir.path("")).output();
        let output = output.expect("the program should start");
        let status = output.status.code().expect("no signal should have ended it");
        assert!([0, 4, 5].contains(&status), "{command:?} ended with {status}: {}", err(&output));
    }
}
