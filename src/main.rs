//! The `customttt` program; all of it is in [`customttt::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    customttt::cli::main()
}
