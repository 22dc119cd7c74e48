//! Which column holds what.

const TEXT_NAMES: [&str; 4] = ["text", "fritext", "beskrivning", "händelse"];
const ID_NAMES: [&str; 3] = ["id", "diarienummer", "dnr"];

/// The place of the text column among the names.
pub(super) fn text_column<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    stated: Option<&str>,
) -> Option<usize> {
    find(names, stated, &TEXT_NAMES)
}

/// The place of the id column among the names.
pub(super) fn id_column<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    stated: Option<&str>,
) -> Option<usize> {
    find(names, stated, &ID_NAMES)
}

fn find<'a>(
    mut names: impl Iterator<Item = &'a str> + Clone,
    stated: Option<&str>,
    guesses: &[&str],
) -> Option<usize> {
    let same = |a: &str, b: &str| a.trim().to_lowercase() == b.trim().to_lowercase();
    match stated {
        Some(stated) => names.position(|name| same(name, stated)),
        None => guesses
            .iter()
            .find_map(|guess| names.clone().position(|name| same(name, guess))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_found_in_any_case_and_order_of_preference() {
        let names = ["Dnr", " HÄNDELSE ", "Fritext", "ID"];
        assert_eq!(text_column(names.into_iter(), None), Some(2));
        assert_eq!(id_column(names.into_iter(), None), Some(3));
        assert_eq!(text_column(names.into_iter(), Some("händelse")), Some(1));
        assert_eq!(text_column(names.into_iter(), Some("text")), None);
    }
}
