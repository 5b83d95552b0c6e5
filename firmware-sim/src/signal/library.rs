//! The recordings: built in, or read from a file or folder; their format is recognised by their header line.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use record::decimal::Decimal;

/// A recording larger than this, unpacked, is refused.
const RECORDING_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The rate of an ECG whose file name does not say another (`-360hz`).
const ECG_HZ: f64 = 360.0;

/// Each with its file name; see `recordings/README.md` for origin and licence.
const EMBEDDED: [(&str, &[u8]); 4] = [
    (
        "ecg-mitbih-208-mlii-360hz.csv.gz",
        include_bytes!("../../recordings/ecg-mitbih-208-mlii-360hz.csv.gz"),
    ),
    (
        "ppg-finger-100hz.csv.gz",
        include_bytes!("../../recordings/ppg-finger-100hz.csv.gz"),
    ),
    (
        "ppg-finger-117hz.csv.gz",
        include_bytes!("../../recordings/ppg-finger-117hz.csv.gz"),
    ),
    (
        "cgm-hall-2018-19-subjects.csv.gz",
        include_bytes!("../../recordings/cgm-hall-2018-19-subjects.csv.gz"),
    ),
];

/// A recording that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The file or folder cannot be read or unpacked.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is of none of the known forms, or a line is not as its header says.
    #[error("{}: {detail}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong; the measured values are not repeated.
        detail: String,
    },
}

/// Recorded samples of equal distance; cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Waveform {
    label: String,
    pub(crate) samples: Arc<[i32]>,
    /// Milliseconds between two samples.
    pub(crate) period_ms: Decimal,
    block: usize,
}

impl Waveform {
    fn new(label: String, samples: Vec<i32>, period_ms: Decimal) -> Option<Self> {
        let rate_hz = rate_hz(period_ms);
        // A block is one second in whole samples.
        let block = rate_hz.round() as usize;
        let usable = !samples.is_empty() && (1..=record::reading::SAMPLES_MAX).contains(&block);
        usable.then(|| Self {
            label,
            samples: samples.into(),
            period_ms,
            block,
        })
    }

    pub(crate) fn rate_hz(&self) -> f64 {
        rate_hz(self.period_ms)
    }

    /// The block that starts at this sample; the last one may be shorter.
    pub(crate) fn block(&self, at: usize) -> &[i32] {
        &self.samples[at..(at + self.block).min(self.samples.len())]
    }

    /// Where the block after this one starts.
    pub(crate) fn after(&self, at: usize) -> usize {
        Some(at + self.block)
            .filter(|next| *next < self.samples.len())
            .unwrap_or(0)
    }
}

fn rate_hz(period_ms: Decimal) -> f64 {
    let (mantissa, scale) = period_ms.parts();
    // Periods have few digits; a double holds them exactly enough for a rate.
    1_000.0 * 10_f64.powi(i32::from(scale)) / mantissa as f64
}

/// One person's recorded glucose; cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    label: String,
    pub(crate) glucose_mg_dl: Arc<[i64]>,
}

/// All recordings that the devices can replay.
#[derive(Clone, Debug, Default)]
pub struct Library {
    glucose: Vec<Person>,
    electrocardiograms: Vec<Waveform>,
    plethysmograms: Vec<Waveform>,
}

impl Library {
    /// The built-in recordings.
    #[must_use]
    pub fn embedded() -> &'static Self {
        static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
            let mut library = Library::default();
            for (name, bytes) in EMBEDDED {
                library
                    .add(Path::new(name), bytes)
                    .expect("a test reads each built-in recording");
            }
            library
        });
        &LIBRARY
    }

    /// The recordings of a file or a folder (`.csv`, `.csv.gz`); kinds of signal it does not have come from the built-in ones.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub fn read(path: &Path) -> Result<Self, LibraryError> {
        let unreadable = |source| LibraryError::Read {
            path: path.to_owned(),
            source,
        };
        let mut library = Self::default();
        if path.is_dir() {
            let entries = fs::read_dir(path).map_err(unreadable)?;
            let mut files = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
                .map_err(unreadable)?;
            files.retain(|file| stem(file).is_some());
            files.sort();
            if files.is_empty() {
                return Err(unreadable(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the folder holds no recording (see firmware-sim/recordings/README.md for their names)",
                )));
            }
            for file in files {
                library.add_file(&file)?;
            }
        } else {
            library.add_file(path)?;
        }
        let embedded = Self::embedded();
        if library.glucose.is_empty() {
            library.glucose.clone_from(&embedded.glucose);
        }
        if library.electrocardiograms.is_empty() {
            library.electrocardiograms.clone_from(&embedded.electrocardiograms);
        }
        if library.plethysmograms.is_empty() {
            library.plethysmograms.clone_from(&embedded.plethysmograms);
        }
        Ok(library)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), LibraryError> {
        let bytes = fs::read(path).map_err(|source| LibraryError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.add(path, &bytes)
    }

    fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), LibraryError> {
        let text = unpack(bytes).map_err(|source| LibraryError::Read {
            path: path.to_owned(),
            source,
        })?;
        let format = |detail: String| LibraryError::Format {
            path: path.to_owned(),
            detail,
        };
        let label = label(path).ok_or_else(|| format("its name must end in .csv or .csv.gz".to_owned()))?;
        let (header, rows) = text.split_once('\n').unwrap_or((&text, ""));
        let rows = Rows { text: rows };
        let empty = || "it has no usable samples".to_owned();
        match header.trim_end() {
            "adc" => {
                let waveform = rows
                    .electrocardiogram(label, path)
                    .map_err(format)?
                    .ok_or_else(|| format(empty()))?;
                self.electrocardiograms.push(waveform);
            }
            "datetime,hr" => {
                let waveform = rows
                    .plethysmogram(label, datetime_ms)
                    .map_err(format)?
                    .ok_or_else(|| format(empty()))?;
                self.plethysmograms.push(waveform);
            }
            "timer,hr" => {
                let waveform = rows
                    .plethysmogram(label, timer_ms)
                    .map_err(format)?
                    .ok_or_else(|| format(empty()))?;
                self.plethysmograms.push(waveform);
            }
            "id,time,glucose_mg_dl,diagnosis" => self.glucose.extend(rows.glucose(&label).map_err(format)?),
            _ => {
                return Err(format(
                    "its header is none of adc | datetime,hr | timer,hr | id,time,glucose_mg_dl,diagnosis".to_owned(),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn glucose(&self, label: &str) -> Option<&Person> {
        self.glucose.iter().find(|person| person.label == label)
    }

    pub(crate) fn electrocardiogram(&self, label: &str) -> Option<&Waveform> {
        self.electrocardiograms.iter().find(|waveform| waveform.label == label)
    }

    pub(crate) fn plethysmogram(&self, label: &str) -> Option<&Waveform> {
        self.plethysmograms.iter().find(|waveform| waveform.label == label)
    }

    pub(crate) fn glucose_label(&self, index: usize) -> &str {
        &self.glucose[index % self.glucose.len()].label
    }

    pub(crate) fn electrocardiogram_label(&self, index: usize) -> &str {
        &self.electrocardiograms[index % self.electrocardiograms.len()].label
    }

    pub(crate) fn plethysmogram_label(&self, index: usize) -> &str {
        &self.plethysmograms[index % self.plethysmograms.len()].label
    }
}

/// The file's name without `.csv` or `.csv.gz`, if it is one.
fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".csv.gz").or_else(|| name.strip_suffix(".csv"))
}

/// The short name of a recording.
fn label(path: &Path) -> Option<String> {
    Some(match stem(path)? {
        "ecg-mitbih-208-mlii-360hz" => "ecg-mitbih-208".to_owned(),
        "cgm-hall-2018-19-subjects" => "cgm-hall-2018".to_owned(),
        other => other.to_owned(),
    })
}

/// The text of a recording, unpacked if it is packed.
fn unpack(bytes: &[u8]) -> io::Result<String> {
    let mut text = String::new();
    let read = if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(bytes)
            .take(RECORDING_BYTES_MAX + 1)
            .read_to_string(&mut text)?
    } else {
        bytes.take(RECORDING_BYTES_MAX + 1).read_to_string(&mut text)?
    };
    if read as u64 > RECORDING_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {RECORDING_BYTES_MAX} bytes unpacked"),
        ));
    }
    Ok(text)
}

/// Milliseconds of `2016-11-24 13:58:58.081000` since 1970, in no particular time zone.
fn datetime_ms(text: &str) -> Option<f64> {
    let at: jiff::civil::DateTime = text.parse().ok()?;
    Some(
        at.duration_since(jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0))
            .as_secs_f64()
            * 1_000.0,
    )
}

/// Milliseconds since the start of the recording.
fn timer_ms(text: &str) -> Option<f64> {
    text.parse().ok().filter(|ms: &f64| ms.is_finite())
}

/// The lines after the header.
struct Rows<'a> {
    text: &'a str,
}

impl<'a> Rows<'a> {
    /// The lines with their numbers in the file.
    fn lines(&self) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        (2..).zip(self.text.lines()).filter(|(_, line)| !line.trim().is_empty())
    }

    fn electrocardiogram(&self, label: String, path: &Path) -> Result<Option<Waveform>, String> {
        let samples = self
            .lines()
            .map(|(number, line)| sample(number, line))
            .collect::<Result<Vec<_>, _>>()?;
        let said = stem(path).and_then(|stem| stem.rsplit('-').next()?.strip_suffix("hz")?.parse().ok());
        let rate_hz = said.unwrap_or(ECG_HZ);
        // Nine digits after the point; a rate between 1 Hz and SAMPLES_MAX Hz fits.
        let period_ms = Decimal::new((1e12 / rate_hz).round() as i64, 9).expect("nine digits are kept");
        Ok(Waveform::new(label, samples, period_ms))
    }

    fn plethysmogram(&self, label: String, clock: fn(&str) -> Option<f64>) -> Result<Option<Waveform>, String> {
        let (mut samples, mut first, mut last) = (Vec::new(), None, None);
        for (number, line) in self.lines() {
            let (time, value) = line
                .split_once(',')
                .ok_or_else(|| format!("line {number} has not two columns"))?;
            first = first.or(Some((number, time)));
            last = Some((number, time));
            samples.push(sample(number, value)?);
        }
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(None);
        };
        let ms = |(number, time): (usize, &str)| clock(time).ok_or_else(|| format!("line {number} has no time"));
        // The timestamps jitter by what the recording computer's clock could resolve; the mean distance is the sensor's.
        let period = (ms(last)? - ms(first)?) / samples.len().saturating_sub(1).max(1) as f64;
        if !(0.01..=1_000.0).contains(&period) {
            return Err("its samples are not between 0.01 and 1000 ms apart".to_owned());
        }
        let period_ms = Decimal::new((period * 1_000.0).round() as i64, 3).expect("three digits are kept");
        Ok(Waveform::new(label, samples, period_ms))
    }

    fn glucose(&self, label: &str) -> Result<Vec<Person>, String> {
        let mut people: Vec<(&str, Vec<i64>)> = Vec::new();
        for (number, line) in self.lines() {
            let mut columns = line.split(',');
            let (id, value) = (columns.next().unwrap_or(""), columns.nth(1).unwrap_or("").trim());
            let value = value
                .parse()
                .map_err(|_| format!("line {number} has no whole number of mg/dL"))?;
            match people.iter_mut().find(|(known, _)| *known == id) {
                Some((_, values)) => values.push(value),
                None => people.push((id, vec![value])),
            }
        }
        let person = |(id, values): (&str, Vec<i64>)| Person {
            label: format!("{label}/{id}"),
            glucose_mg_dl: values.into(),
        };
        Ok(people.into_iter().map(person).collect())
    }
}

fn sample(number: usize, text: &str) -> Result<i32, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("line {number} has no whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recordings_are_whole() {
        let library = Library::embedded();
        assert_eq!(library.glucose.len(), 19);
        let ecg = library.electrocardiogram("ecg-mitbih-208").expect("known");
        assert_eq!(
            (ecg.samples.len(), ecg.period_ms.to_string().as_str(), ecg.block),
            (108_000, "2.777777778", 360)
        );
        let slow = library.plethysmogram("ppg-finger-100hz").expect("known");
        assert_eq!(
            (slow.samples.len(), slow.period_ms.to_string().as_str(), slow.block),
            (68_476, "9.958", 100)
        );
        let fast = library.plethysmogram("ppg-finger-117hz").expect("known");
        assert_eq!(
            (fast.samples.len(), fast.period_ms.to_string().as_str(), fast.block),
            (15_000, "8.548", 117)
        );
    }

    #[test]
    fn a_folder_replaces_the_kinds_it_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("cgm-mine.csv");
        let text = "id,time,glucose_mg_dl,diagnosis\nanna,2026-01-01 00:00:00,101,none\nbert,2026-01-01 00:00:00,99,none\nanna,2026-01-01 00:05:00,102,none\n";
        fs::write(&file, text).expect("written");
        fs::write(folder.path().join("README.md"), "not a recording").expect("written");
        for path in [folder.path(), file.as_path()] {
            let library = Library::read(path).expect("good");
            assert_eq!(library.recording(super::super::Kind::GlucoseSensor, 0), "cgm-mine/anna");
            assert_eq!(
                library.glucose("cgm-mine/anna").expect("known").glucose_mg_dl[..],
                [101, 102]
            );
            assert!(library.glucose("cgm-hall-2018/1636-69-001").is_none());
            assert!(library.electrocardiogram("ecg-mitbih-208").is_some());
        }
    }

    #[test]
    fn the_packed_files_beside_the_crate_read_the_same() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings");
        let library = Library::read(&folder).expect("good");
        let (ours, built_in) = (
            library.glucose("cgm-hall-2018/2133-039"),
            Library::embedded().glucose("cgm-hall-2018/2133-039"),
        );
        assert_eq!(
            ours.expect("known").glucose_mg_dl,
            built_in.expect("known").glucose_mg_dl
        );
    }

    #[test]
    fn a_bad_line_is_named_without_its_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ecg-250hz.csv");
        fs::write(&file, "adc\n1\nsecret\n").expect("written");
        let error = Library::read(&file).expect_err("bad").to_string();
        assert!(error.contains("line 3") && !error.contains("secret"), "{error}");
        fs::write(&file, "time\n1\n").expect("written");
        assert!(Library::read(&file).expect_err("bad").to_string().contains("header"));
        fs::write(&file, "adc\n").expect("written");
        assert!(Library::read(&file).is_err());
    }

    #[test]
    fn the_rate_of_an_ecg_is_in_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ecg-mine-250hz.csv");
        fs::write(&file, "adc\n1\n2\n").expect("written");
        let library = Library::read(&file).expect("good");
        assert_eq!(
            library
                .electrocardiogram("ecg-mine-250hz")
                .expect("known")
                .period_ms
                .cmp_magnitude(Decimal::whole(4)),
            std::cmp::Ordering::Equal
        );
    }
}
