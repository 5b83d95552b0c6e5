//! A device that nobody knows is refused by its name, with the known names that are nearest to it: most are mistyped.

use record::ids::DeviceId;

/// Names that are offered, at most.
const OFFERED_MAX: usize = 3;
/// A name is near if one letter in so many, or one of a shorter one, is another.
const LETTERS_PER_MISTAKE: usize = 3;

/// What is said of a device that is not among those that are known.
///
/// # Errors
/// The sentence, if it is not.
pub fn known<'a>(device: &DeviceId, all: impl IntoIterator<Item = &'a DeviceId>) -> Result<(), String> {
    let (mut near, mut count) = (Vec::new(), 0);
    for other in all {
        if other == device {
            return Ok(());
        }
        count += 1;
        let mistakes = mistakes(device.as_str().as_bytes(), other.as_str().as_bytes());
        if mistakes <= (device.as_str().len() / LETTERS_PER_MISTAKE).max(1) {
            near.push((mistakes, other));
        }
    }
    near.sort_unstable();
    near.dedup();
    near.truncate(OFFERED_MAX);
    let offered: Vec<_> = near.iter().map(|(_, name)| name.as_str()).collect();
    Err(match offered.as_slice() {
        [] if count == 0 => format!("device {device} is not known here: no device is"),
        [] => format!("device {device} is not known here, and no known name is near it"),
        offered => format!(
            "device {device} is not known here; did you mean {}?",
            offered.join(" or ")
        ),
    })
}

/// How many letters have to be put in, taken out, exchanged or swapped with their neighbour to make one name of another.
fn mistakes(left: &[u8], right: &[u8]) -> usize {
    let mut rows: [Vec<usize>; 3] = [
        vec![0; right.len() + 1],
        (0..=right.len()).collect(),
        vec![0; right.len() + 1],
    ];
    for i in 1..=left.len() {
        let [two_above, above, row] = &mut rows;
        row[0] = i;
        for j in 1..=right.len() {
            let exchanged = above[j - 1] + usize::from(left[i - 1] != right[j - 1]);
            row[j] = exchanged.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                row[j] = row[j].min(two_above[j - 2] + 1);
            }
        }
        rows.rotate_left(1);
    }
    rows[1][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(device: &str, all: &[&str]) -> Result<(), String> {
        let name = |text: &&str| text.parse::<DeviceId>().expect("good");
        let all: Vec<_> = all.iter().map(name).collect();
        known(&name(&device), &all)
    }

    #[test]
    fn a_mistyped_name_is_refused_with_what_was_meant() {
        let all = ["oximeter-2", "oximeter-1", "scale-1", "cuff-1", "cuff-1"];
        assert_eq!(said("scale-1", &all), Ok(()));
        for (typed, meant) in [
            ("scael-1", "mean scale-1?"),
            ("oxymeter-1", "mean oximeter-1 or oximeter-2?"),
            ("cuf-1", "mean cuff-1?"),
            ("scales-1", "mean scale-1?"),
        ] {
            let said = said(typed, &all).expect_err("nobody knows it");
            assert!(said.contains(typed) && said.ends_with(meant), "{said}");
        }
        let far = said("thermometer-9", &all).expect_err("nobody knows it");
        assert!(far.contains("no known name is near"), "{far}");
        assert!(said("scale-1", &[]).expect_err("nobody").contains("no device is"));
    }

    #[test]
    fn mistakes_are_counted() {
        for (left, right, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "axc", 1),
            ("abc", "abcd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(mistakes(left.as_bytes(), right.as_bytes()), count, "{left} {right}");
            assert_eq!(mistakes(right.as_bytes(), left.as_bytes()), count, "{right} {left}");
        }
    }
}
