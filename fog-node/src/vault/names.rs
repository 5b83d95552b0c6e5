//! Which payloads the embedded store has: a table of their digests and sizes beside them, so that nobody has to read payloads to list
//! them.
//!
//! A row comes and goes in the commit that puts or removes the payload. The table is believed as long as it has as many rows as
//! there are payloads, which redb knows without counting; otherwise somebody has altered the file, or it is older than the
//! table, and the table is made anew from the payloads' own keys.

use redb::{
    ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition, TableError,
};

use super::{
    embedded::PAYLOADS,
    file::{BYTES, File, TOTALS},
};

/// How many bytes each payload has, by SHA-256 of it.
pub(super) const NAMES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("names");

/// SHA-256 of every payload, in order.
pub(super) fn list(file: &File) -> Result<Vec<[u8; 32]>, redb::Error> {
    if !file.with(|database| is_believed(&database.begin_read()?))? {
        make_anew(file)?;
    }
    let mut names = file.with(|database| {
        let names = database.begin_read()?.open_table(NAMES)?;
        let mut listed = Vec::with_capacity(usize::try_from(names.len()?).unwrap_or_default());
        for row in names.iter()? {
            listed.push(*row?.0.value());
        }
        Ok(listed)
    })?;
    // A byte that was altered in a key must not lead who looks for another one astray.
    names.sort_unstable();
    Ok(names)
}

fn is_believed(transaction: &ReadTransaction) -> Result<bool, redb::Error> {
    let names = match transaction.open_table(NAMES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(false),
        names => names?.len()?,
    };
    Ok(names == transaction.open_table(PAYLOADS)?.len()?)
}

/// Makes the table from the payloads, and takes what is gone out of the sum.
fn make_anew(file: &File) -> Result<(), redb::Error> {
    let (payloads, gone) = file.write(|transaction| {
        let payloads = transaction.open_table(PAYLOADS)?;
        let mut names = transaction.open_table(NAMES)?;
        let (mut gone, mut gone_bytes) = (0_u64, 0);
        for row in names.iter()? {
            let (name, bytes) = row?;
            if payloads.get(name.value())?.is_none() {
                (gone, gone_bytes) = (gone + 1, gone_bytes + bytes.value());
            }
        }
        names.retain(|_, _| false)?;
        for row in payloads.iter()? {
            let (name, payload) = row?;
            names.insert(name.value(), payload.value().len() as u64)?;
        }
        let mut totals = transaction.open_table(TOTALS)?;
        let bytes = totals.get(BYTES)?.map_or(0, |total| total.value());
        totals.insert(BYTES, bytes.saturating_sub(gone_bytes))?;
        Ok((payloads.len()?, gone))
    })?;
    if gone > 0 {
        tracing::error!(
            gone,
            payloads,
            "payloads were taken out of the vault's file by somebody else"
        );
    } else {
        tracing::info!(payloads, "the vault's list of its payloads was made anew");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_that_somebody_took_out_of_the_file_are_not_listed() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = File::open(dir.path().join("vault.redb"), 1 << 20, |transaction| {
            transaction.open_table(PAYLOADS).map(drop).map_err(Into::into)
        });
        let file = file.expect("opens");
        let write = |work: fn(&redb::WriteTransaction) -> Result<(), redb::Error>| file.write(work).expect("writes");
        // A file of before the table was there.
        write(|transaction| {
            let mut payloads = transaction.open_table(PAYLOADS)?;
            for at in [3, 1, 2] {
                payloads.insert(&[at; 32], [at; 3].as_slice())?;
            }
            transaction.open_table(TOTALS)?.insert(BYTES, 9)?;
            Ok(())
        });
        assert_eq!(list(&file).expect("lists"), [[1; 32], [2; 32], [3; 32]]);
        write(|transaction| {
            transaction.open_table(PAYLOADS)?.remove(&[2; 32])?;
            Ok(())
        });
        assert_eq!(list(&file).expect("lists"), [[1; 32], [3; 32]]);
        assert_eq!(file.bytes().expect("reads"), 6, "it takes no room any more");
        write(|transaction| {
            transaction.open_table(NAMES)?.remove(&[1; 32])?;
            Ok(())
        });
        assert_eq!(list(&file).expect("lists"), [[1; 32], [3; 32]]);
    }

    /// Not a fact, but a fault: `tests/faults/lost_blocks.py` has it take a share of the payloads out of a node's file, row by row and
    /// behind the node's back: `TAKEN_OUT=PERCENT,FILE`.
    #[test]
    #[ignore = "a fault that tests/faults/lost_blocks.py asks for"]
    fn taken_out() {
        let asked = std::env::var_os("TAKEN_OUT").expect("tests/faults/lost_blocks.py says it");
        let asked = asked.into_string().expect("a text");
        let (percent, path) = asked.split_once(',').expect("a share and a file");
        let percent: u64 = percent.parse().expect("a share");
        println!("waits for the file");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let database = loop {
            match redb::Database::open(path) {
                Ok(database) => break database,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        let transaction = database.begin_write().expect("writes");
        let (mut before, mut taken) = (0_u64, 0_u64);
        {
            let mut payloads = transaction.open_table(PAYLOADS).expect("is there");
            let all: Vec<[u8; 32]> = payloads
                .iter()
                .expect("reads")
                .map(|row| *row.expect("reads").0.value())
                .collect();
            for key in all {
                before += 1;
                if before * percent / 100 > taken {
                    payloads.remove(&key).expect("removes");
                    taken += 1;
                }
            }
        }
        transaction.commit().expect("writes");
        println!("taken out: {taken} of {before}");
    }
}
