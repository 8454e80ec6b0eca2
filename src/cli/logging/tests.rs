use log::Log;

use super::*;

/// The levels of mmapfs and of another crate that pass, before the ceiling.
fn filtered(
    level: Option<LevelFilter>,
    variable: Option<&str>,
) -> (bool, bool, Option<LevelFilter>) {
    let mut builder = Builder::new();
    let ceiling = filter(&mut builder, level, variable);
    let logger = builder.build();
    let passes = |target: &'static str| {
        logger.enabled(&log::Metadata::builder().level(Level::Debug).target(target).build())
    };
    (passes("mmapfs::fuse"), passes(LOG_TARGETS.0), ceiling)
}

#[test]
fn a_bare_level_is_for_mmapfs_alone() {
    let library = format!("{}=debug", LOG_TARGETS.0);
    for (level, variable, ceiling) in [
        (None, None, LevelFilter::Info),
        (None, Some(""), LevelFilter::Info),
        (None, Some("DEBUG"), LevelFilter::Debug),
        (Some(LevelFilter::Trace), Some("error"), LevelFilter::Trace),
        (Some(LevelFilter::Off), Some(library.as_str()), LevelFilter::Off),
    ] {
        assert_eq!(filtered(level, variable), (true, false, Some(ceiling)), "{variable:?}");
    }
}

#[test]
fn directives_are_taken_as_they_are() {
    let library = format!("{}=debug,warn", LOG_TARGETS.0);
    assert_eq!(filtered(None, Some(&library)), (false, true, None));
    assert_eq!(filtered(None, Some("mmapfs::fuse=debug")), (true, false, None));
}

#[test]
fn severities_are_those_of_syslog() {
    assert_eq!(
        [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace].map(severity),
        [3, 4, 6, 7, 7]
    );
}
