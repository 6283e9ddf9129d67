//! The file: making and opening it, its lock, and its transactions.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError};

use crate::error::IpamError;
use crate::fault::Fault;
use crate::holder;
use crate::ledger::Ledger;
use crate::query::Cooldown;
use crate::schema;
use crate::snapshot::Snapshot;

/// The engine's page cache. Its default of a gibibyte is not for a node agent; with this, an
/// allocation in a /16 with all of its 65534 addresses leased still takes 0.1 ms beside the sync.
const CACHE_BYTES: usize = 8 << 20;

/// An open store. The engine holds a lock on the file as long as this lives.
pub(crate) struct Store {
    db: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the store, or makes it if there is none.
    pub(crate) fn open_or_create(path: &Path) -> Result<Self, IpamError> {
        match Self::open(path) {
            Err(IpamError::NoStore { .. }) => Self::create(path),
            opened => opened,
        }
    }

    /// Opens a store that exists. An empty file counts as none.
    pub(crate) fn open(path: &Path) -> Result<Self, IpamError> {
        let no_store = || IpamError::NoStore {
            path: path.to_owned(),
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => return Err(no_store()),
            Ok(metadata) if !metadata.is_file() => {
                return Err(IpamError::NotAStore {
                    path: path.to_owned(),
                    source: None,
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_store()),
            Err(source) => return Err(file_error("look at", path, source)),
        }
        let db = engine().open(path).map_err(|error| refused(error, path))?;
        Self::checked(db, path)
    }

    /// Makes a store under another name and gives it its own once it is complete: a file that
    /// the engine had only begun to write could never be opened again.
    fn create(path: &Path) -> Result<Self, IpamError> {
        let unfinished = unfinished_name(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&unfinished)
            .map_err(|source| file_error("create", &unfinished, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(&unfinished, path)),
            Err(TryLockError::Error(source)) => {
                return Err(file_error("lock", &unfinished, source));
            }
        }
        // Whoever held the lock before may have finished meanwhile. While this lock is held, and
        // the file still has the name, nobody else can.
        if !has_name(&file, &unfinished) || has_content(path) {
            if has_name(&file, &unfinished) {
                fs::remove_file(&unfinished)
                    .map_err(|source| file_error("remove", &unfinished, source))?;
            }
            return Self::open(path);
        }
        // What an interrupted attempt left is of no use to anybody.
        file.set_len(0)
            .map_err(|source| file_error("empty", &unfinished, source))?;
        let db = engine()
            .create_file(file)
            .map_err(|error| refused(error, &unfinished))?;
        initialise(&db).map_err(|fault| fault.named("create", path))?;
        fs::rename(&unfinished, path).map_err(|source| file_error("rename into", path, source))?;
        sync_directory(path)?;
        Self::checked(db, path)
    }

    fn checked(db: Database, path: &Path) -> Result<Self, IpamError> {
        let store = Self {
            db,
            path: path.to_owned(),
        };
        store.with_read("check the schema of", |txn| schema::check(txn, path))?;
        Ok(store)
    }

    /// Opens a store on a storage that a test watches, and makes its tables if there are none.
    #[cfg(test)]
    pub(crate) fn on(backend: impl redb::StorageBackend, path: &Path) -> Result<Self, IpamError> {
        let db = engine()
            .create_with_backend(backend)
            .map_err(|error| refused(error, path))?;
        let fault = |fault: Fault| fault.named("create", path);
        let made = db
            .begin_read()
            .map_err(Fault::from)
            .and_then(|txn| Ok(txn.list_tables()?.next().is_some()))
            .map_err(fault)?;
        if !made {
            initialise(&db).map_err(fault)?;
        }
        Self::checked(db, path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn cooldown_s(&self) -> Result<Option<u64>, IpamError> {
        self.with_read("read the cool-down from", schema::cooldown_s)
    }

    /// Runs `body` over one consistent state of the tables.
    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Snapshot) -> Result<T, Fault>,
    ) -> Result<T, IpamError> {
        self.with_read(operation, |txn| body(&Snapshot::open(txn)?))
    }

    /// Runs `body` in one transaction and commits what it changed.
    ///
    /// When this returns `Ok`, the change is on disk: the engine's commits are durable unless told
    /// otherwise, and nothing here tells it so. When `body` refuses, nothing of it remains.
    pub(crate) fn write<T>(
        &self,
        operation: &'static str,
        cooldown: impl Fn() -> Cooldown,
        body: impl FnOnce(&mut Ledger<'_>) -> Result<T, Fault>,
    ) -> Result<T, IpamError> {
        self.write_swept(cooldown, body)
            .map_err(|fault| fault.named(operation, &self.path))
    }

    /// Sets the length of the cool-down for this and later openings.
    pub(crate) fn set_cooldown_s(&self, length_s: u64) -> Result<(), IpamError> {
        let set = || {
            let txn = self.db.begin_write()?;
            if schema::set_cooldown_s(&txn, length_s)? {
                txn.commit()?;
            } else {
                txn.abort()?;
            }
            Ok(())
        };
        set().map_err(|fault: Fault| fault.named("set the cool-down", &self.path))
    }

    fn write_swept<T>(
        &self,
        cooldown: impl Fn() -> Cooldown,
        body: impl FnOnce(&mut Ledger<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let txn = self.db.begin_write()?;
        // The time is read once it is this writer's turn, so that it never runs behind what an
        // earlier writer has stamped.
        let mut ledger = Ledger::open(&txn, cooldown())?;
        let started_over = ledger.sweep()?;
        let outcome = body(&mut ledger);
        let changed = ledger.changed();
        drop(ledger);
        if outcome.is_ok() && changed {
            txn.commit()?;
            return outcome;
        }
        txn.abort()?;
        if started_over {
            // The cool-downs that start over must do so once, or they would never end while
            // every request is refused because of them.
            let txn = self.db.begin_write()?;
            Ledger::open(&txn, cooldown())?.sweep()?;
            txn.commit()?;
        }
        outcome
    }

    fn with_read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, IpamError> {
        self.db
            .begin_read()
            .map_err(Fault::from)
            .and_then(|txn| body(&txn))
            .map_err(|fault| fault.named(operation, &self.path))
    }
}

fn engine() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn initialise(db: &Database) -> Result<(), Fault> {
    let txn = db.begin_write()?;
    schema::create(&txn)?;
    txn.commit()?;
    Ok(())
}

fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

/// Tells whether the open file is the one that the path leads to.
fn has_name(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Makes a rename survive a power cut: a name lives in its directory, not in the file.
fn sync_directory(path: &Path) -> Result<(), IpamError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| file_error("sync directory", directory, source))
}

fn file_error(operation: &'static str, path: &Path, source: io::Error) -> IpamError {
    IpamError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn locked(file: &Path, store: &Path) -> IpamError {
    IpamError::Locked {
        path: store.to_owned(),
        holder: holder::of(file),
    }
}

/// Turns the engine's refusal to open a file into one that says what to do.
fn refused(error: DatabaseError, path: &Path) -> IpamError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => locked(path, path),
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() == io::ErrorKind::InvalidData =>
        {
            IpamError::NotAStore {
                path: path.to_owned(),
                source: Some(Box::new(redb::Error::Io(source))),
            }
        }
        other => Fault::from(other).named("open", path),
    }
}
