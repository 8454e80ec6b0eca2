use std::fs::File;
use std::sync::mpsc::channel;

use super::*;

/// A thread that is asked, and gives back what `file` has when it is.
fn with_keeper(act: impl FnOnce(Keeper, &dyn Fn() -> Vec<Asked>)) {
    let (tell, told) = channel();
    let (say, said) = channel();
    let thread = std::thread::spawn(move || {
        let breaks = Breaks::of_this_thread().unwrap();
        say.send((breaks.keeper(), breaks.stop().unwrap())).unwrap();
        while let Some(asked) = breaks.wait().unwrap() {
            tell.send(asked).unwrap();
        }
    });
    let (keeper, stop) = said.recv().unwrap();
    act(keeper, &|| told.recv().unwrap());
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn a_writer_waits_until_the_lease_is_given_back_and_the_thread_is_told_which() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "content").unwrap();
    let file = File::open(&path).unwrap();
    with_keeper(|keeper, asked| {
        take(&file, keeper).unwrap();
        assert!(is_held(&file));
        let other = path.clone();
        let (begun, opened) = channel();
        let writer = std::thread::spawn(move || {
            File::options().write(true).truncate(true).open(&other).unwrap();
            begun.send(()).unwrap();
        });
        assert_eq!(asked(), [Asked::File(file.as_raw_fd())]);
        assert!(!is_held(&file));
        assert!(opened.try_recv().is_err(), "the writer did not wait");
        assert_eq!(file.metadata().unwrap().len(), 7);
        give_back(&file);
        writer.join().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        give_back(&file); // A second time does no harm.
    });
}

#[test]
fn a_file_that_is_open_for_writing_gives_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let writer = File::create(&path).unwrap();
    let file = File::open(&path).unwrap();
    with_keeper(|keeper, _| {
        assert_eq!(take(&file, keeper), Err(Errno::AGAIN));
        drop(writer);
        assert_eq!(take(&file, keeper), Ok(()));
    });
}
