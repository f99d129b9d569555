use super::*;
use crate::folio::FolioKind;
use crate::memdesc::Order;
use crate::mm::Base;
use crate::testing;

#[test]
fn an_unexplained_reference_is_found() {
    let base = Base::new(testing::memory(1024)).unwrap();
    let mm = Mm::new(&base);
    let before = mm.census(&[]);
    assert!(before.is_consistent(), "{:?}", before.discrepancies());
    let folio = mm.alloc_folio(Order::new(2).unwrap(), crate::buddy::Gfp::KERNEL, FolioKind::Anon);
    let folio = folio.unwrap();
    let head = folio.pfn();
    let census = mm.census(&[]);
    assert_eq!(census.folios, 1);
    assert_eq!(
        census.discrepancies().iter().collect::<Vec<_>>(),
        [&MmDiscrepancy::References { folio: head, counted: 1, explained: 0 }]
    );
    mm.put(folio);
    base.settle();
    assert!(mm.census(&[]).is_consistent());
}
