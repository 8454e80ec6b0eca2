//! Man pages and completions, from the definitions behind `--help`.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::Cli;
use super::help;
use crate::config::options::Group;
use crate::control::command::Verb as ControlVerb;
use crate::control::command::help::{NOTES, advice_text};
use crate::error::Failure;
use crate::shown::Show;

#[cfg(test)]
mod tests;

/// The page of the name that mount(8) looks for.
const HELPER_PAGE: (&str, &str) = ("mount.mmapfs.8", ".so man1/mmapfs-mount.1\n");

/// Writes a page for the program and one for every command into a directory, which is made if it
/// is missing.
pub fn write(dir: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::failed(dir.shown(), error);
    fs::create_dir_all(dir).map_err(failed)?;
    for (name, page) in pages().map_err(failed)? {
        fs::write(dir.join(name), page).map_err(failed)?;
    }
    Ok(())
}

/// The completions of a shell, as the script that it loads.
pub fn completions(shell: Shell) -> Result<String, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mmapfs", &mut script);
    String::from_utf8(script).map_err(|error| Failure::failed("completions", error))
}

/// Every page, as (file name, text).
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![(String::from("mmapfs.1"), main_page(program.clone())?)];
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("mmapfs-{}", command.get_name());
        for below in command.get_subcommands() {
            let name = format!("{name}-{}", below.get_name());
            pages.push((format!("{name}.1"), command_page(below.clone(), name)?));
        }
        pages.push((format!("{name}.1"), command_page(command.clone(), name)?));
    }
    pages.push((HELPER_PAGE.0.into(), HELPER_PAGE.1.into()));
    Ok(pages)
}

fn man(command: Command) -> Man {
    Man::new(command)
        .source(format!("mmapfs {}", env!("CARGO_PKG_VERSION")))
        .manual("Mapped filesystem")
}

fn main_page(program: Command) -> io::Result<Vec<u8>> {
    let usage = usage(program.clone());
    let man = man(program);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(&[usage]).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    paragraph(help::SHORTHAND).to_writer(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    control_file().to_writer(&mut page)?;
    list("EXIT STATUS", &help::EXIT_CODES).to_writer(&mut page)?;
    list("ENVIRONMENT", &help::ENVIRONMENT).to_writer(&mut page)?;
    list("FILES", &help::FILES).to_writer(&mut page)?;
    see_also("mount(8), fstab(5), fuse(4), mmap(2), madvise(2), msync(2)").to_writer(&mut page)?;
    Ok(page)
}

fn command_page(command: Command, name: String) -> io::Result<Vec<u8>> {
    let verb = command.get_name().to_owned();
    let usage = usage(command.clone());
    let has_commands = command.has_subcommands();
    let man = man(command).title(name);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    match verb.as_str() {
        "mount" => synopsis(&[usage, help::SHORT_FORM.into(), help::HELPER_FORM.into()]),
        _ => synopsis(&[usage]),
    }
    .to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    match verb.as_str() {
        "scratches" => {
            let (title, text) = help::SCRATCHES_EXAMPLES.split_once(":\n").unwrap_or_default();
            preformatted(&title.to_uppercase(), text).to_writer(&mut page)?;
        }
        "mount" => mount_options().to_writer(&mut page)?,
        "advise" => preformatted("ADVICE", &advice_text()).to_writer(&mut page)?,
        _ => {}
    }
    list("EXIT STATUS", &help::EXIT_CODES).to_writer(&mut page)?;
    see_also("mmapfs(1)").to_writer(&mut page)?;
    Ok(page)
}

/// Usage of a command, without the word that clap begins it with.
fn usage(mut command: Command) -> String {
    let usage = command.render_usage().to_string();
    usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned()
}

fn synopsis(forms: &[String]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).control("nf", []);
    for form in forms {
        roff.text([bold(form)]);
    }
    roff.control("fi", []);
    roff
}

fn paragraph(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("PP", []).text([roman(text)]);
    roff
}

fn list(title: &str, entries: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (word, meaning) in entries {
        roff.control("TP", []).text([bold(*word)]).text([roman(*meaning)]);
    }
    roff
}

fn preformatted(title: &str, text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]).control("nf", []).text([roman(text)]).control("fi", []);
    roff
}

fn see_also(pages: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages)]);
    roff
}

fn control_file() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["CONTROL FILE"]).text([roman(
        "One command to a line, written to the control file; the answer is read on the same \
         descriptor.",
    )]);
    for verb in ControlVerb::ALL {
        roff.control("TP", []).text([bold(verb.usage())]).text([roman(verb.doc())]);
    }
    roff.control("PP", []).control("nf", []).text([roman(NOTES)]).control("fi", []);
    roff
}

fn mount_options() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["MOUNT OPTIONS"]);
    for group in Group::ALL {
        roff.control("SS", [group.title()]);
        if group == Group::Passed {
            roff.text([roman(help::names(group))]);
            continue;
        }
        for known in group.members() {
            roff.control("TP", []).text([bold(known.usage())]).text([roman(known.doc)]);
        }
    }
    roff
}
