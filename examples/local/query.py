"""Ask the table that sink.yaml fills: orders and turnover a day. Run it where the writer ran."""

from __future__ import annotations

import sys

from deltalake import DeltaTable, QueryBuilder

QUESTION = """
select day, count(*) as orders, sum(amount) as amount
from orders
group by day
order by day
"""

if __name__ == "__main__":
    table = DeltaTable(sys.argv[1] if len(sys.argv) > 1 else "orders-table")
    print(QueryBuilder().register("orders", table).execute(QUESTION).read_all())
