//! Beats in an ECG or PPG, found sample by sample as on the device, and the rates derived from their intervals.
//!
//! The detector is Elgendi's pair of moving averages (PLoS ONE 8(10): e76585 for PPG; Elgendi, Jonkman, De Boer 2010 for
//! QRS): the band-passed signal is squared; where a short average (one beat's peak) rises above a long one (one beat)
//! there is a beat, at the short average's maximum. The band-pass is the difference of two running means, which is enough
//! here and costs two additions a sample. Each longer window is centred on the shorter by delaying the shorter.

use std::collections::VecDeque;

/// An interval longer than this means missed beats, not a slow heart (24 a minute).
const INTERVAL_MS_MAX: f64 = 2_500.0;
/// Without a beat for this long there is no rate to show.
const SILENCE_MS_MAX: f64 = 3_000.0;
/// The heart rate is the median of so many intervals.
const RATE_INTERVALS: usize = 9;
/// There is no rate before so many intervals.
const RATE_INTERVALS_MIN: usize = 4;
/// Variability looks back so far.
const VARIABILITY_MS: f64 = 60_000.0;
/// There is no variability before so many normal intervals.
const VARIABILITY_INTERVALS_MIN: usize = 20;
/// An interval that differs from the median by more is no normal-to-normal interval (premature beat, pause).
const NORMAL_DEVIATION: f64 = 0.2;
/// A beat's peak is at least this part of the usual one.
const PEAK_FRACTION_MIN: f64 = 0.03;
/// While the filters fill nothing is believed.
const SETTLING_MS: f64 = 1_500.0;

/// A running mean over a fixed number of samples.
#[derive(Debug)]
struct Mean {
    window: VecDeque<f64>,
    length: usize,
    sum: f64,
}

impl Mean {
    fn over(length: usize) -> Self {
        Self {
            window: VecDeque::with_capacity(length + 1),
            length,
            sum: 0.0,
        }
    }

    fn push(&mut self, value: f64) -> f64 {
        self.window.push_back(value);
        self.sum += value;
        if self.window.len() > self.length
            && let Some(oldest) = self.window.pop_front()
        {
            self.sum -= oldest;
        }
        self.sum / self.window.len() as f64
    }
}

/// A delay by a fixed number of samples.
#[derive(Debug)]
struct Delay {
    line: VecDeque<f64>,
    length: usize,
}

impl Delay {
    fn by(length: usize) -> Self {
        Self {
            line: VecDeque::with_capacity(length + 1),
            length,
        }
    }

    fn push(&mut self, value: f64) -> f64 {
        self.line.push_back(value);
        let oldest = self.line.front().copied().unwrap_or(value);
        if self.line.len() > self.length {
            self.line.pop_front();
        }
        oldest
    }
}

/// What the two kinds of signal differ in, in milliseconds.
struct Shape {
    smooth: f64,
    baseline: f64,
    peak: f64,
    beat: f64,
    refractory: f64,
    /// A pulse is a hill; a QRS complex may point either way.
    hills_only: bool,
}

const ECG: Shape = Shape {
    smooth: 25.0,
    baseline: 110.0,
    peak: 97.0,
    beat: 611.0,
    refractory: 250.0,
    hills_only: false,
};
const PPG: Shape = Shape {
    smooth: 200.0,
    baseline: 1_000.0,
    peak: 111.0,
    beat: 667.0,
    refractory: 300.0,
    hills_only: true,
};

/// Finds beats; says after how many samples each one was.
#[derive(Debug)]
struct Detector {
    smooth: Mean,
    smooth_delay: Delay,
    baseline: Mean,
    peak: Mean,
    peak_delay: Delay,
    beat: Mean,
    /// Elgendi's offset: a tenth of the mean energy, here of the last three seconds.
    energy: Mean,
    hills_only: bool,
    width_min: usize,
    refractory: usize,
    settled_at: usize,
    now: usize,
    width: usize,
    best: (f64, usize),
    last: Option<usize>,
    peaks: VecDeque<f64>,
}

impl Detector {
    fn new(shape: &Shape, rate_hz: f64) -> Self {
        // Window lengths are small positive numbers; rounding to whole samples is the point of the cast.
        let samples = |ms: f64| ((ms * rate_hz / 1_000.0).round() as usize).max(1);
        let (smooth, baseline) = (samples(shape.smooth), samples(shape.baseline));
        let (peak, beat) = (samples(shape.peak), samples(shape.beat));
        Self {
            smooth: Mean::over(smooth),
            smooth_delay: Delay::by(baseline.saturating_sub(smooth) / 2),
            baseline: Mean::over(baseline),
            peak: Mean::over(peak),
            peak_delay: Delay::by(beat.saturating_sub(peak) / 2),
            beat: Mean::over(beat),
            energy: Mean::over(samples(3_000.0)),
            hills_only: shape.hills_only,
            width_min: (peak / 2).max(1),
            refractory: samples(shape.refractory),
            settled_at: samples(SETTLING_MS),
            now: 0,
            width: 0,
            best: (0.0, 0),
            last: None,
            peaks: VecDeque::with_capacity(RATE_INTERVALS + 1),
        }
    }

    /// Takes a sample; returns the position of a beat when one has just been recognised.
    fn push(&mut self, sample: i32) -> Option<usize> {
        self.now += 1;
        let sample = f64::from(sample);
        let smooth = self.smooth.push(sample);
        let wave = self.smooth_delay.push(smooth) - self.baseline.push(sample);
        let wave = if self.hills_only { wave.max(0.0) } else { wave };
        let energy = wave * wave;
        let short = self.peak.push(energy);
        let short = self.peak_delay.push(short);
        let threshold = self.beat.push(energy) + 0.1 * self.energy.push(energy);
        if self.now <= self.settled_at {
            return None;
        }
        if short > threshold {
            if self.width == 0 || short > self.best.0 {
                self.best = (short, self.now);
            }
            self.width += 1;
            return None;
        }
        let width = std::mem::take(&mut self.width);
        (width >= self.width_min).then(|| self.judge()).flatten()
    }

    /// The block of interest is over: a beat, unless it is too close to the last one or too small.
    fn judge(&mut self) -> Option<usize> {
        let (height, at) = self.best;
        let usual = median(self.peaks.iter().copied()).unwrap_or(height);
        if self.last.is_some_and(|last| at - last <= self.refractory) || height < PEAK_FRACTION_MIN * usual {
            return None;
        }
        self.last = Some(at);
        self.peaks.push_back(height);
        if self.peaks.len() > RATE_INTERVALS {
            self.peaks.pop_front();
        }
        Some(at)
    }
}

/// The interval that ended with a beat.
#[derive(Debug)]
struct Interval {
    at_ms: f64,
    length_ms: f64,
    normal: bool,
}

/// The heart's rhythm as the device has heard it so far.
#[derive(Debug)]
pub(crate) struct Rhythm {
    detector: Detector,
    sample_ms: f64,
    last_beat_ms: Option<f64>,
    /// At most a minute of them.
    intervals: VecDeque<Interval>,
    found: bool,
}

impl Rhythm {
    /// Listens to an ECG.
    pub(crate) fn of_ecg(rate_hz: f64) -> Self {
        Self::new(&ECG, rate_hz)
    }

    /// Listens to a PPG.
    pub(crate) fn of_ppg(rate_hz: f64) -> Self {
        Self::new(&PPG, rate_hz)
    }

    fn new(shape: &Shape, rate_hz: f64) -> Self {
        Self {
            detector: Detector::new(shape, rate_hz),
            sample_ms: 1_000.0 / rate_hz,
            last_beat_ms: None,
            intervals: VecDeque::new(),
            found: false,
        }
    }

    /// Takes the next samples.
    pub(crate) fn hear(&mut self, samples: &[i32]) {
        for &sample in samples {
            if let Some(at) = self.detector.push(sample) {
                self.beat(at as f64 * self.sample_ms);
            }
        }
        self.found |= self.heart_rate_per_min().is_some();
    }

    fn beat(&mut self, at_ms: f64) {
        let length_ms = self.last_beat_ms.map(|last| at_ms - last);
        self.last_beat_ms = Some(at_ms);
        let Some(length_ms) = length_ms else { return };
        if length_ms > INTERVAL_MS_MAX {
            // The pulse was lost and is found again: what was heard before says nothing about now.
            self.intervals.clear();
            return;
        }
        let usual = self.usual_ms().unwrap_or(length_ms);
        let normal = (length_ms - usual).abs() <= NORMAL_DEVIATION * usual;
        self.intervals.push_back(Interval {
            at_ms,
            length_ms,
            normal,
        });
        while self
            .intervals
            .front()
            .is_some_and(|oldest| oldest.at_ms < at_ms - VARIABILITY_MS)
        {
            self.intervals.pop_front();
        }
    }

    fn usual_ms(&self) -> Option<f64> {
        median(
            self.intervals
                .iter()
                .rev()
                .take(RATE_INTERVALS)
                .map(|interval| interval.length_ms),
        )
    }

    /// Whether there has been a heart rate since the start.
    pub(crate) const fn has_found_a_rate(&self) -> bool {
        self.found
    }

    /// Beats per minute, unless the pulse is not found or lost.
    pub(crate) fn heart_rate_per_min(&self) -> Option<i64> {
        let now_ms = self.detector.now as f64 * self.sample_ms;
        let fresh = self.last_beat_ms.is_some_and(|last| now_ms - last <= SILENCE_MS_MAX);
        if !fresh || self.intervals.len() < RATE_INTERVALS_MIN {
            return None;
        }
        // Between 24 and 240 a minute by the limits on the intervals, so the cast cannot lose anything but the fraction.
        self.usual_ms().map(|usual| (60_000.0 / usual).round() as i64)
    }

    /// Standard deviation of the normal-to-normal intervals of the last minute.
    pub(crate) fn variability_ms(&self) -> Option<i64> {
        self.heart_rate_per_min()?;
        let normal = || {
            self.intervals
                .iter()
                .filter(|interval| interval.normal)
                .map(|interval| interval.length_ms)
        };
        let count = normal().count();
        if count < VARIABILITY_INTERVALS_MIN {
            return None;
        }
        let mean = normal().sum::<f64>() / count as f64;
        let variance = normal().map(|length| (length - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        // A few hundred milliseconds at most, by the limits on the intervals.
        Some(variance.sqrt().round() as i64)
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pulse wave with a second, smaller hill after the main one, as a finger shows it.
    fn pulses(rate_hz: f64, seconds: usize, interval_ms: impl Fn(usize) -> f64) -> Vec<i32> {
        let total = (seconds as f64 * rate_hz) as usize;
        let (mut beats, mut at) = (Vec::new(), 0.0);
        while at < seconds as f64 * 1_000.0 {
            beats.push(at);
            at += interval_ms(beats.len());
        }
        let hill = |ms: f64, centre: f64, width: f64| (-((ms - centre) / width).powi(2)).exp();
        (0..total)
            .map(|sample| {
                let ms = sample as f64 * 1_000.0 / rate_hz;
                let beat = |start: &f64| 300.0 * hill(ms - start, 120.0, 70.0) + 90.0 * hill(ms - start, 380.0, 80.0);
                500 + beats.iter().map(beat).sum::<f64>() as i32
            })
            .collect()
    }

    #[test]
    fn a_known_rate_is_found_and_the_second_hill_is_not_counted() {
        for (per_min, interval) in [(50, 1_200.0), (75, 800.0), (120, 500.0)] {
            let mut rhythm = Rhythm::of_ppg(100.0);
            rhythm.hear(&pulses(100.0, 30, |_| interval));
            let found = rhythm.heart_rate_per_min().expect("found");
            assert!(
                (per_min - 1..=per_min + 1).contains(&found),
                "{found} instead of {per_min}"
            );
            // An even pulse varies by no more than the sampling can tell (10 ms).
            let varies = rhythm.variability_ms().expect("more than twenty intervals");
            assert!(varies <= 6, "{varies} ms at {per_min}");
        }
    }

    #[test]
    fn a_known_variability_is_found_and_premature_beats_are_left_out() {
        // 780 and 820 ms by turns have a standard deviation of 20 ms; each 15th beat comes 300 ms early.
        let interval = |beat: usize| match beat % 15 {
            0 => 500.0,
            1 => 1_100.0,
            n if n % 2 == 0 => 780.0,
            _ => 820.0,
        };
        let mut rhythm = Rhythm::of_ppg(250.0);
        rhythm.hear(&pulses(250.0, 60, interval));
        let found = rhythm.variability_ms().expect("found");
        assert!((14..=28).contains(&found), "{found}");
    }

    #[test]
    fn a_lost_pulse_has_no_rate() {
        let mut rhythm = Rhythm::of_ppg(100.0);
        rhythm.hear(&pulses(100.0, 20, |_| 800.0));
        assert!(rhythm.heart_rate_per_min().is_some());
        rhythm.hear(&[500; 600]);
        assert_eq!(rhythm.heart_rate_per_min(), None);
        assert!(rhythm.has_found_a_rate());
    }

    #[test]
    fn noise_of_nothing_has_no_rate() {
        let mut rhythm = Rhythm::of_ecg(360.0);
        rhythm.hear(&[1024; 3_600]);
        assert_eq!((rhythm.heart_rate_per_min(), rhythm.variability_ms()), (None, None));
    }
}
