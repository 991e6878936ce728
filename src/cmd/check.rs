//! `perch check`: every problem of a configuration, or the plan that it makes.
//!
//! Exit codes: 0 valid (perhaps with warnings), 3 invalid. The same loader and the same certificate reader as `serve`,
//! so what passes here starts there, ports permitting.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::INVALID_CONFIG;
use crate::config::{self, Invalid, Loaded, Problem};
use crate::endpoint_tls::EndpointsTls;
use crate::proxy::tls::Tls;

mod plan;

/// Check a configuration and print the plan
///
/// Prints every problem of the file at once, each with its key path and line, and ends with 3; or prints the plan:
/// listeners, routes in order of precedence, services with the shares of their versions.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration; - is standard input
    #[arg(value_name = "FILE", env = "PERCH_CONFIG")]
    file: PathBuf,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text, env = "PERCH_OUTPUT")]
    output: Output,

    /// Don't open certificate and key files: to check a configuration that is for another machine
    #[arg(long, env = "PERCH_SKIP_FILES")]
    skip_files: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs it.
///
/// # Errors
/// When the answer can't be written.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let loaded = if options.file == Path::new("-") { config::load_stdin() } else { config::load(&options.file) };
    let checked = loaded.and_then(|loaded| if options.skip_files { Ok(loaded) } else { with_files(loaded) });

    let file = if options.file == Path::new("-") { "stdin".into() } else { options.file.to_string_lossy() };
    let (warnings, problems) = match &checked {
        Ok(loaded) => (&loaded.warnings, [].as_slice()),
        Err(invalid) => (&invalid.warnings, invalid.problems.as_slice()),
    };
    let text = match (options.output, &checked) {
        (Output::Json, _) => {
            let answer = json!({
                "file": file,
                "valid": checked.is_ok(),
                "problems": problems,
                "warnings": warnings,
                "plan": checked.as_ref().ok().map(|loaded| plan::json(&loaded.config)),
            });
            format!("{answer:#}\n")
        }
        (Output::Text, Ok(loaded)) => plan::text(&loaded.config, &styled()),
        (Output::Text, Err(_)) => String::new(),
    };
    if options.output == Output::Text {
        // Among problems, warnings would only hide them.
        for warning in warnings.iter().filter(|_| problems.is_empty()) {
            eprintln!("warning: {warning}");
        }
        for problem in problems {
            eprintln!("{problem}");
        }
        if let count @ 1.. = problems.len() {
            eprintln!("{file} is invalid: {count} problem{}", if count == 1 { "" } else { "s" });
        }
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // `perch check | head` is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ if problems.is_empty() => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::from(INVALID_CONFIG)),
    }
}

/// Looks into the certificate and key files that the configuration names.
fn with_files(mut loaded: Loaded) -> Result<Loaded, Invalid> {
    let mut problems: Vec<Problem> = Vec::new();
    let place = |p: Problem| loaded.places.problem(p.path, p.message);
    for (position, listener) in loaded.config.listeners.iter().enumerate() {
        let Some(pairs) = &listener.tls else { continue };
        match Tls::new(&format!("listeners[{position}].tls"), pairs, None) {
            Ok((_, warnings)) => loaded.warnings.extend(warnings.into_iter().map(place)),
            Err(found) => problems.extend(found.into_iter().map(place)),
        }
    }
    match EndpointsTls::default().prepare(&loaded.config) {
        Ok((_, warnings)) => loaded.warnings.extend(warnings.into_iter().map(place)),
        Err(found) => problems.extend(found.into_iter().map(place)),
    }
    if problems.is_empty() { Ok(loaded) } else { Err(Invalid { problems, warnings: loaded.warnings }) }
}

/// Headings in bold, on a terminal whose owner has not said no (<https://no-color.org>).
fn styled() -> plan::Style {
    let wanted = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if wanted { plan::Style { bold: "\x1b[1m", plain: "\x1b[0m" } } else { plan::Style { bold: "", plain: "" } }
}
