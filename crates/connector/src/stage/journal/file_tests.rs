#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

struct Bed {
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn book(&self) -> JournalFile {
        JournalFile::start(self.folder.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// What the next start is told to remove.
    fn left(&self) -> HashSet<Entry> {
        let mut all = HashSet::new();
        of_the_dead(self.folder.path(), |left| {
            all.extend(left);
            true
        })
        .unwrap();
        all
    }
}

fn entry(name: impl std::fmt::Display) -> Entry {
    Entry { path: format!("/none/{name}").into(), inode: None }
}

/// A worker that lives for long lists the present, not its past.
#[test]
fn it_stays_short_however_much_has_come_and_gone() {
    let bed = Bed::new();
    let mut book = bed.book();
    let kept: HashSet<_> = (0..10).map(|number| entry(format!("kept-{number}"))).collect();
    kept.iter().for_each(|entry| book.list(entry).unwrap());
    for number in 0..1_000 {
        book.list(&entry(number)).unwrap();
        book.strike(&entry(number));
        assert!(book.lines <= 4 * (kept.len() + 1) + 2, "{} lines", book.lines);
    }
    let path = book.unlock();
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), book.lines);
    std::mem::forget(book);
    assert_eq!(bed.left(), kept);
    assert!(bed.names().is_empty());
}

/// Neither before nor after a compaction is a living worker's journal taken for a dead one's.
#[test]
fn it_is_locked_throughout() {
    let bed = Bed::new();
    let mut book = bed.book();
    book.list(&entry("kept")).unwrap();
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            for number in 0..1_000 {
                book.list(&entry(number)).unwrap();
                book.strike(&entry(number));
            }
        });
        while !working.is_finished() {
            assert_eq!(bed.left(), HashSet::new());
        }
    });
    assert!(book.path.exists() && is_still(&book.file, &book.path));
}

/// Its owner dies at any byte of what a compaction writes, and before it takes the journal's place.
#[test]
fn a_compaction_that_is_cut_anywhere_loses_nothing() {
    let whole = {
        let bed = Bed::new();
        let mut book = bed.book();
        book.list(&entry("a")).unwrap();
        book.list(&entry("b")).unwrap();
        book.compact().unwrap();
        fs::read(&book.path).unwrap()
    };
    for cut in 0..=whole.len() {
        let bed = Bed::new();
        let mut book = bed.book();
        ["a", "b", "gone"].iter().for_each(|name| book.list(&entry(name)).unwrap());
        book.strike(&entry("gone"));
        let path = book.unlock();
        std::mem::forget(book);
        fs::write(path.with_extension(NEW_EXTENSION), &whole[..cut]).unwrap();
        assert_eq!(bed.left(), HashSet::from([entry("a"), entry("b")]), "cut at {cut}");
        assert!(bed.names().is_empty());
    }
}

/// The disk was full: the line that it cut off does not spoil the one after it.
#[test]
fn a_torn_line_costs_no_other() {
    let bed = Bed::new();
    let mut book = bed.book();
    book.file.write_all(b"{\"owned\":{\"pa").unwrap();
    book.is_torn = true;
    book.list(&entry("next")).unwrap();
    book.unlock();
    std::mem::forget(book);
    assert_eq!(bed.left(), HashSet::from([entry("next")]));
}

/// What cannot be listed is not made, and a compaction that fails leaves the journal as it was.
#[test]
fn a_journal_that_cannot_be_written_says_so() {
    let bed = Bed::new();
    let mut book = bed.book();
    book.list(&entry("a")).unwrap();
    // Nobody can make a file there.
    fs::create_dir(book.path.with_extension(NEW_EXTENSION)).unwrap();
    assert!(book.compact().is_err());
    for number in 0..100 {
        book.list(&entry(number)).unwrap();
        book.strike(&entry(number));
    }
    book.file = File::open(&book.path).unwrap();
    assert!(book.list(&entry("b")).is_err());
    assert!(!book.lists(&entry("b")) && book.lists(&entry("a")));
    book.strike(&entry("a"));
    fs::remove_dir(book.path.with_extension(NEW_EXTENSION)).unwrap();
    book.compact().unwrap();
    book.list(&entry("c")).unwrap();
    book.unlock();
    std::mem::forget(book);
    assert_eq!(bed.left(), HashSet::from([entry("c")]));
}
