//! What is put aside, to the euro, and what rows carry, to the cent.

use proptest::prelude::*;
use rstest::rstest;

use super::super::row_rates;
use super::*;

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

/// Amounts in cents.
fn receipts(of: &[(&str, i64)]) -> Receipts {
    let mut receipts = Receipts::default();
    for &(activity, cents) in of {
        receipts.add(activity, cents);
    }
    receipts
}

fn acre(created: &str) -> TaxProfile {
    TaxProfile { has_acre: Some(true), created: Some(created.parse().unwrap()), ..TaxProfile::default() }
}

/// Returns a profile in which everything that decides about caveats is known, and no caveat
/// applies.
fn known() -> TaxProfile {
    TaxProfile {
        created: Some("2020-01-15".parse().unwrap()),
        has_acre: Some(false),
        income_tax: Some(IncomeTax::Scale),
        trade: Some(Trade::Commerce),
        cipav: Some(false),
    }
}

fn with(income_tax: IncomeTax) -> TaxProfile {
    TaxProfile { income_tax: Some(income_tax), ..known() }
}

/// Compares contributions, training and total.
fn check(of: &[(&str, i64)], at: &str, profile: TaxProfile, expected: [i64; 3]) {
    let aside = put_aside(&receipts(of), month(at), profile).unwrap();
    assert_eq!([aside.contributions.0, aside.training.0, aside.total.0], expected);
}

#[test]
fn a_month_of_two_activities() {
    let aside =
        put_aside(&receipts(&[(SALES, 240_000), (SERVICES, 60_000)]), month("2026-11"), known()).unwrap();
    let lines: Vec<_> = aside.lines.iter().map(|line| (line.declared.0, line.contributions.0)).collect();
    assert_eq!(lines, [(2_400, 295), (600, 127)]);
    assert_eq!((aside.contributions, aside.training, aside.total), (Euros(422), Euros(3), Euros(425)));
    assert_eq!((aside.income_tax, aside.caveats), (IncomeTaxAside::Scale, vec![Caveat::ChamberTax]));
}

#[rstest]
#[case(LIBERAL, "2024-06", 211)]
#[case(LIBERAL, "2024-07", 231)]
#[case(LIBERAL, "2024-12", 231)]
#[case(LIBERAL, "2025-01", 246)]
#[case(LIBERAL, "2026-01", 256)]
#[case(LIBERAL, "2027-01", 256)]
#[case("BNC Cipav", "2024-06", 212)]
#[case("BNC Cipav", "2024-07", 232)]
#[case("BNC Cipav", "2026-11", 232)]
#[case(SALES, "2023-01", 123)]
#[case(SERVICES, "2026-11", 212)]
fn contributions_of_a_thousand_euros(#[case] activity: &str, #[case] at: &str, #[case] expected: i64) {
    let aside = put_aside(&receipts(&[(activity, 100_000)]), month(at), known()).unwrap();
    assert_eq!(aside.contributions, Euros(expected));
}

#[test]
fn before_2023_nothing_is_known() {
    assert_eq!(put_aside(&receipts(&[(SALES, 1)]), month("2022-12"), known()), None);
    assert_eq!(row_amounts(SALES, 1, month("2022-12"), known()), None);
}

#[rstest]
// 100,49 € is declared as 100 €, 100,50 € as 101 €.
#[case(10_049, 100)]
#[case(10_050, 101)]
#[case(0, 0)]
#[case(49, 0)]
#[case(50, 1)]
// A negative month is declared as 0.
#[case(-10_000, 0)]
#[case(i64::MIN, 0)]
fn whole_euros_are_declared(#[case] cents: i64, #[case] expected: i64) {
    assert_eq!(declared(cents), Euros(expected));
}

#[test]
fn half_a_euro_counts_as_one() {
    // 61,50 and 0,50.
    check(&[(SALES, 50_000)], "2026-11", known(), [62, 1, 63]);
    check(&[(SALES, 49_900)], "2026-11", known(), [61, 0, 61]);
}

#[test]
fn training_is_added_up_before_it_is_rounded() {
    // 0,4 and 0,4.
    check(&[(SALES, 40_000), (SERVICES, 40_000)], "2026-11", known(), [134, 1, 135]);
    let craft = TaxProfile { trade: Some(Trade::Craft), ..known() };
    check(&[(SALES, 100_000), (SERVICES, 100_000), (LIBERAL, 100_000)], "2026-11", craft, [591, 8, 599]);
}

#[test]
fn refunds_of_one_activity_do_not_lower_another() {
    check(&[(SALES, -100_000), (SERVICES, 100_000)], "2026-11", known(), [212, 1, 213]);
    let aside = put_aside(&receipts(&[(SALES, -100_000)]), month("2026-11"), known()).unwrap();
    assert_eq!((aside.lines[0].declared, aside.total, aside.caveats), (Euros(0), Euros(0), vec![]));
}

#[rstest]
#[case("2026-06-30", "2026-11", &[(SALES, 62), (SERVICES, 106), (LIBERAL, 128), ("Cipav", 134)])]
#[case("2026-07-01", "2026-11", &[(SALES, 92), (SERVICES, 159), (LIBERAL, 192), ("Cipav", 134)])]
#[case("2025-12-31", "2026-09", &[(SALES, 62), (SERVICES, 106), (LIBERAL, 128), ("Cipav", 134)])]
#[case("2025-12-31", "2026-10", &[(SALES, 123), (SERVICES, 212), (LIBERAL, 256), ("Cipav", 232)])]
#[case("2024-05-02", "2024-06", &[(LIBERAL, 106), ("Cipav", 121)])]
#[case("2024-05-02", "2024-07", &[(LIBERAL, 116), ("Cipav", 139)])]
#[case("2024-05-02", "2025-01", &[(LIBERAL, 123), ("Cipav", 139)])]
fn acre_lowers_contributions(#[case] created: &str, #[case] at: &str, #[case] expected: &[(&str, i64)]) {
    for &(activity, contributions) in expected {
        let aside = put_aside(&receipts(&[(activity, 100_000)]), month(at), acre(created)).unwrap();
        assert_eq!(aside.contributions, Euros(contributions), "{activity}");
    }
}

#[rstest]
#[case(acre("2026-03-01"), None)]
#[case(acre("2025-06-03"), Some(Caveat::AcreEnded { on: "2026-04-01".parse().unwrap() }))]
#[case(acre("2026-12-01"), Some(Caveat::AcreContradicted { created: "2026-12-01".parse().unwrap() }))]
#[case(TaxProfile { created: None, ..acre("2026-03-01") }, Some(Caveat::AcreUndated))]
#[case(TaxProfile::default(), Some(Caveat::AcreUnknown))]
#[case(TaxProfile { has_acre: None, ..acre("2026-03-01") }, Some(Caveat::AcreUnknown))]
// Whoever it is, it is over.
#[case(TaxProfile { has_acre: None, ..acre("2024-03-01") }, None)]
#[case(TaxProfile { has_acre: Some(false), ..TaxProfile::default() }, None)]
fn what_is_said_of_acre(#[case] profile: TaxProfile, #[case] expected: Option<Caveat>) {
    let profile =
        TaxProfile { income_tax: Some(IncomeTax::NotSubject), trade: Some(Trade::Commerce), ..profile };
    let aside = put_aside(&receipts(&[(SERVICES, 100_000)]), month("2026-11"), profile).unwrap();
    let expected: Vec<Caveat> = expected.into_iter().chain([Caveat::ChamberTax]).collect();
    assert_eq!(aside.caveats, expected);
    let is_full = !matches!(profile, TaxProfile { has_acre: Some(true), .. }) || expected.len() == 2;
    assert_eq!(aside.contributions, Euros(if is_full { 212 } else { 106 }));
}

#[test]
fn what_is_not_known_is_said() {
    let of = receipts(&[(SALES, 100_000), (LIBERAL, 100_000), ("mixte", 12_345)]);
    let aside = put_aside(&of, month("2027-01"), TaxProfile::default()).unwrap();
    assert_eq!(
        aside.caveats,
        [
            Caveat::UnknownActivity { cents: 12_345 },
            Caveat::AcreUnknown,
            Caveat::TradeAssumed,
            Caveat::SchemeAssumed,
            Caveat::IncomeTaxUnknown,
            Caveat::ChamberTax,
            Caveat::RatesAssumed,
        ]
    );
    assert_eq!((aside.income_tax, aside.total), (IncomeTaxAside::Unknown, Euros(123 + 256 + 3)));
}

#[test]
fn flat_income_tax_is_due_with_the_rest() {
    let of = receipts(&[(SALES, 100_000), (SERVICES, 100_000), (LIBERAL, 100_000)]);
    let aside = put_aside(&of, month("2026-11"), with(IncomeTax::Flat)).unwrap();
    assert_eq!(aside.income_tax, IncomeTaxAside::Flat(Euros(49)));
    assert_eq!(aside.total, Euros(591 + 4 + 49));
    let free = put_aside(&of, month("2026-11"), with(IncomeTax::NotSubject)).unwrap();
    assert_eq!((free.income_tax, free.total), (IncomeTaxAside::NotSubject, Euros(595)));
}

#[test]
fn what_is_put_aside_reads_back() {
    for profile in [TaxProfile::default(), with(IncomeTax::Flat), acre("2025-06-03")] {
        let of = receipts(&[(SALES, 100_000), ("BNC Cipav", 5_000), ("mixte", 1)]);
        let aside = put_aside(&of, month("2027-01"), profile).unwrap();
        let json = serde_json::to_string(&aside).unwrap();
        assert_eq!(serde_json::from_str::<PutAside>(&json).unwrap(), aside, "{json}");
    }
}

#[rstest]
#[case(SALES, with(IncomeTax::Scale), (12_300, Some(RowIncomeTax::Bareme), None, 87_700))]
#[case(SERVICES, with(IncomeTax::NotSubject), (21_200, None, None, 78_800))]
#[case(LIBERAL, TaxProfile::default(), (25_600, None, None, 74_400))]
#[case(SERVICES, with(IncomeTax::Flat), (21_200, Some(RowIncomeTax::Vl), Some(1_700), 77_100))]
#[case(LIBERAL, TaxProfile { cipav: Some(true), ..with(IncomeTax::Flat) },
    (23_200, Some(RowIncomeTax::Vl), Some(2_200), 74_600))]
#[case(SALES, acre("2026-03-01"), (6_200, None, None, 93_800))]
fn a_row_of_a_thousand_euros(
    #[case] activity: &str,
    #[case] profile: TaxProfile,
    #[case] (contributions, income_tax_mode, income_tax, net): (i64, Option<RowIncomeTax>, Option<i64>, i64),
) {
    let expected = RowAmounts { contributions, income_tax_mode, income_tax, net };
    assert_eq!(row_amounts(activity, 100_000, month("2026-11"), profile), Some(expected));
}

#[test]
fn a_row_is_rounded_to_the_cent() {
    let net = |cents| row_amounts(SALES, cents, month("2026-11"), known()).unwrap();
    // 412,05 and 0,615 cents.
    assert_eq!((net(3_350).contributions, net(3_350).net), (412, 2_938));
    assert_eq!((net(5).contributions, net(-5).contributions), (1, -1));
    assert_eq!(row_amounts("mixte", 1_000, month("2026-11"), known()), None);
}

#[test]
fn names_are_those_of_the_columns() {
    let read = |text| serde_json::from_str::<IncomeTax>(text).unwrap();
    assert_eq!(read(r#""versement_liberatoire""#), IncomeTax::Flat);
    assert_eq!(read(r#""bareme""#), IncomeTax::Scale);
    assert_eq!(read(r#""non_soumis""#), IncomeTax::NotSubject);
    assert_eq!(
        serde_json::to_string(&[RowIncomeTax::Vl, RowIncomeTax::Bareme]).unwrap(),
        r#"["vl","bareme"]"#
    );
}

fn profiles() -> impl Strategy<Value = TaxProfile> {
    let taxes = [None, Some(IncomeTax::Flat), Some(IncomeTax::Scale), Some(IncomeTax::NotSubject)];
    let created = prop::option::of((2022..=2026_i32, 1..=365_u32));
    (created, any::<Option<bool>>(), prop::sample::select(taxes.to_vec())).prop_map(
        |(created, has_acre, income_tax)| TaxProfile {
            created: created.and_then(|(year, day)| NaiveDate::from_yo_opt(year, day)),
            has_acre,
            income_tax,
            ..TaxProfile::default()
        },
    )
}

fn months() -> impl Strategy<Value = Month> {
    (2023..=2027_i32, 1..=12_u32).prop_map(|(year, number)| Month::new(year, number).unwrap())
}

proptest! {
    #[test]
    fn the_total_is_the_sum_and_never_more_than_the_turnover(
        [sales, services, liberal] in prop::array::uniform3(-1_000_000_i64..10_000_000),
        month in months(),
        profile in profiles(),
    ) {
        let of = Receipts { sales, services, liberal, ..Receipts::default() };
        let aside = put_aside(&of, month, profile).unwrap();
        let flat = match aside.income_tax {
            IncomeTaxAside::Flat(euros) => euros.0,
            _ => 0,
        };
        prop_assert_eq!(aside.total.0, aside.contributions.0 + aside.training.0 + flat);
        let declared: i64 = aside.lines.iter().map(|line| line.declared.0).sum();
        prop_assert!((0..=declared).contains(&aside.total.0));
    }

    #[test]
    fn a_quarter_has_one_rate(month in months(), profile in profiles()) {
        let last = Month::new(month.year(), month.month().div_ceil(3) * 3).unwrap();
        prop_assume!(profile.created.is_none_or(|created| created <= month.last_day()));
        let of = receipts(&[(SALES, 100_000), (SERVICES, 100_000), (LIBERAL, 100_000)]);
        prop_assert_eq!(put_aside(&of, month, profile), put_aside(&of, last, profile));
    }

    /// The database computes with the table that it is given: integers, and one division at the end.
    #[test]
    fn the_table_of_the_rows_says_the_same(
        cents in -1_000_000_i64..10_000_000,
        month in months(),
        profile in profiles(),
        activity in prop::sample::select(vec![SALES, SERVICES, LIBERAL]),
    ) {
        let rates = row_rates();
        let rates = rates.iter().rfind(|rate| rate.activity == activity && rate.from <= month).unwrap();
        let contributions = match profile.created.filter(|_| profile.has_acre == Some(true)) {
            Some(created) if month.last_day() < created => rates.full,
            Some(created) if month.first_day() >= super::super::acre_end(created) => rates.full,
            Some(created) if created < "2026-07-01".parse().unwrap() => rates.acre_half.unwrap(),
            Some(_) => rates.acre_three_quarters.unwrap(),
            None => rates.full,
        };
        let of = |rate: Rate| whole(i128::from(cents) * i128::from(rate.as_hundredths_of_percent()));
        let row = row_amounts(activity, cents, month, profile).unwrap();
        prop_assert_eq!(row.contributions, of(contributions));
        prop_assert_eq!(row.income_tax, (profile.income_tax == Some(IncomeTax::Flat)).then(|| of(rates.flat_tax)));
        prop_assert_eq!(row.net, cents - row.contributions - row.income_tax.unwrap_or(0));
    }
}
