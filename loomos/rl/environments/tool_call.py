"""Tool calls: a shop's records, and typed tools that read and change them.

A call is a JSON object, `{"tool": ..., "arguments": {...}}`, checked against the tool's schema.
What counts is the state that the records are left in and the answer that is given, not the words.
A policy network picks calls from a menu, on which wrong ones stand too.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import ToolCallConfig
from loomos.rl.environments.task import ACTIONS, Family, Task, Verdict, one_hot, pad, spread

KINDS = ("lookup", "cancel", "refund", "reorder")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gia", "Hal")
PRODUCTS = {"lamp": 30, "chair": 80, "desk": 150, "mug": 8, "rug": 60, "clock": 25}
LONGEST_COMPLETION = 100_000


class Arguments(BaseModel):
    """Base of all tools' arguments."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FindCustomer(Arguments):
    """Find a customer's id by name."""

    name: str


class ListOrders(Arguments):
    """List the orders of a customer, oldest first."""

    customer_id: int


class CancelOrder(Arguments):
    """Cancel an order that is not yet shipped."""

    order_id: int
    reason: Literal["customer_request", "out_of_stock"]


class RefundOrder(Arguments):
    """Pay back money for a shipped order."""

    order_id: int
    amount: Annotated[int, Field(gt=0)]


class PlaceOrder(Arguments):
    """Order a product for a customer."""

    customer_id: int
    product: str
    quantity: Annotated[int, Field(ge=1, le=10)]


class Finish(Arguments):
    """End, with an answer where one was asked for."""

    answer: int | None = None


TOOLS: dict[str, type[Arguments]] = {
    "find_customer": FindCustomer,
    "list_orders": ListOrders,
    "cancel_order": CancelOrder,
    "refund_order": RefundOrder,
    "place_order": PlaceOrder,
    "finish": Finish,
}
"""The tools by name; the schema of their arguments is `TOOLS[name].model_json_schema()`."""

Call = dict[str, Any]


class Records:
    """The shop's records."""

    def __init__(self, customers: int, orders_each: int, random: np.random.Generator) -> None:
        names = random.permutation(NAMES)[:customers]
        self.customers = {10 + n: str(name) for n, name in enumerate(names)}
        self.orders: dict[int, dict[str, Any]] = {}
        for customer in self.customers:
            for _ in range(orders_each):
                product = str(random.choice(list(PRODUCTS)))
                quantity = int(random.integers(1, 4))
                self.orders[100 + len(self.orders)] = {
                    "customer_id": customer,
                    "product": product,
                    "quantity": quantity,
                    "total": PRODUCTS[product] * quantity,
                    "status": str(random.choice(["open", "shipped"])),
                    "refunded": 0,
                }
        self.answer: int | None = None
        self.is_finished = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def call(self, call: Call) -> Any:
        """Do what a call asks.

        Raises:
            ValueError: it cannot be done; says why.
        """
        name = call.get("tool") if isinstance(call, dict) else None
        tool = TOOLS.get(name) if isinstance(name, str) else None
        if tool is None or set(call) != {"tool", "arguments"}:
            raise ValueError(
                'a call is {"tool": NAME, "arguments": {...}} with one of ' + ", ".join(TOOLS)
            )
        try:
            arguments = tool.model_validate(call["arguments"])
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "arguments"
            raise ValueError(f"{where}: {problem['msg']}") from None
        handler: Callable[[Any], Any] = getattr(self, f"_{name}")
        return handler(arguments)

    def _find_customer(self, given: FindCustomer) -> Any:
        for customer, name in self.customers.items():
            if name == given.name:
                return {"customer_id": customer}
        raise ValueError(f"no customer is called {given.name}")

    def _list_orders(self, given: ListOrders) -> Any:
        if given.customer_id not in self.customers:
            raise ValueError(f"no customer has the id {given.customer_id}")
        return [
            {"order_id": order_id, **order}
            for order_id, order in self.orders.items()
            if order["customer_id"] == given.customer_id
        ]

    def _order(self, order_id: int, status: str) -> dict[str, Any]:
        if order_id not in self.orders:
            raise ValueError(f"no order has the id {order_id}")
        order = self.orders[order_id]
        if order["status"] != status:
            raise ValueError(f"order {order_id} is {order['status']}, not {status}")
        return order

    def _cancel_order(self, given: CancelOrder) -> Any:
        self._order(given.order_id, "open")["status"] = f"cancelled: {given.reason}"
        return {"done": True}

    def _refund_order(self, given: RefundOrder) -> Any:
        order = self._order(given.order_id, "shipped")
        if order["refunded"] + given.amount > order["total"]:
            raise ValueError(f"more than was paid: {order['total']}")
        order["refunded"] += given.amount
        return {"done": True}

    def _place_order(self, given: PlaceOrder) -> Any:
        if given.customer_id not in self.customers:
            raise ValueError(f"no customer has the id {given.customer_id}")
        if given.product not in PRODUCTS:
            raise ValueError(f"no product is called {given.product}")
        order_id = 100 + len(self.orders)
        self.orders[order_id] = {
            "customer_id": given.customer_id,
            "product": given.product,
            "quantity": given.quantity,
            "total": PRODUCTS[given.product] * given.quantity,
            "status": "open",
            "refunded": 0,
        }
        return {"order_id": order_id}

    def _finish(self, given: Finish) -> Any:
        self.answer, self.is_finished = given.answer, True
        return {"done": True}


class ToolTask(Task):
    """One wish of a customer."""

    has_turns = True

    def __init__(self, kind: str, level: float, faults: float, random: np.random.Generator) -> None:
        self.kind = kind
        self.records = Records(spread(2, 8, level), spread(2, 4, level), random)
        wish, self._calls = _wish(kind, self.records, random)
        self._wish = set(re.findall(r"\w+", wish))
        self._wanted = copy.deepcopy(self.records)
        for call in self._calls:
            self._wanted.call(call)
        self._changes = max(1, _distance(self.records, self._wanted))
        self._faults = faults
        self._random = random
        self._failed: set[str] = set()
        self._menu = _menu(self._calls, self.records, random)
        self._last = 0.0
        self._done = np.zeros(ACTIONS, np.float32)
        schemas = json.dumps(
            {name: {"about": tool.__doc__, **_schema(tool)} for name, tool in TOOLS.items()}
        )
        self.prompt = (
            f"You work for a shop. {wish}\nCall one tool at a time, as a JSON object "
            '{"tool": NAME, "arguments": {...}} and nothing else; call finish when you are '
            f"done.\nTools: {schemas}"
        )

    def observe(self) -> NDArray[np.float32]:
        """The kind of wish; of each call its tool, how much of it the wish names, if it is done."""
        tools = list(TOOLS)
        which = [(tools.index(call["tool"]) + 1) / len(tools) for call in self._menu]
        named = [_named(call, self._wish) for call in self._menu]
        return pad(one_hot(KINDS.index(self.kind), 4), which, named, self._done, [self._last])

    def act(self, action: int) -> Verdict:
        """Make a call of the menu."""
        verdict = self._make(self._menu[action])
        self._last = 1.0 if "error" not in verdict.facts else -1.0
        if "error" not in verdict.facts:
            self._done[action] = 1
        return verdict

    def reply(self, completion: str) -> Verdict:
        """Make the call that the completion is."""
        text = completion.strip()
        if len(text) > LONGEST_COMPLETION:
            return _refused("a call has less than 100,000 characters")
        try:
            call = json.loads(text.removeprefix("```json").removesuffix("```"))
        except (ValueError, RecursionError) as error:
            return _refused(f"not a JSON object: {type(error).__name__}")
        return self._make(call)

    def _make(self, call: Any) -> Verdict:
        key = json.dumps(call, sort_keys=True)
        if key not in self._failed and self._random.random() < self._faults:
            self._failed.add(key)
            return _refused("the service is busy; try again")
        try:
            result = self.records.call(call)
        except ValueError as error:
            return _refused(str(error))
        if not self.records.is_finished:
            return Verdict(message=json.dumps(result))
        if self.records == self._wanted:
            return Verdict(is_over=True, is_correct=True, share=1.0)
        left = _distance(self.records, self._wanted)
        return Verdict(is_over=True, share=max(0.0, 1 - left / self._changes))

    def solution(self) -> list[int]:
        """The right calls of the menu, made again where one failed for no reason."""
        return [self._menu.index(call) for call in self._tried()]

    def right_replies(self) -> list[str]:
        """The right calls, made again where one failed for no reason."""
        return [json.dumps(call) for call in self._tried()]

    def _tried(self) -> list[Call]:
        trial, made = copy.deepcopy(self), []
        for call in self._calls:
            made.append(call)
            if "error" in trial._make(call).facts:
                made.append(call)
                trial._make(call)
        return made


def _named(call: Call, wish: set[str]) -> float:
    """Share of a call's arguments that the wish names."""
    values = [str(value) for value in call["arguments"].values()]
    return sum(value in wish for value in values) / len(values)


def _refused(why: str) -> Verdict:
    return Verdict(message=json.dumps({"error": why}), facts={"error": why})


def _schema(tool: type[Arguments]) -> dict[str, Any]:
    schema = tool.model_json_schema()
    return {"properties": schema.get("properties", {}), "required": schema.get("required", [])}


def _distance(a: Records, b: Records) -> int:
    """Facts in which two states of the records differ."""
    orders = {*a.orders, *b.orders}
    differing = sum(a.orders.get(order) != b.orders.get(order) for order in orders)
    return differing + (a.answer != b.answer)


def _call(tool: str, **arguments: Any) -> Call:
    return {"tool": tool, "arguments": arguments}


def _wish(kind: str, records: Records, random: np.random.Generator) -> tuple[str, list[Call]]:
    """What a customer wants, and the calls that do it."""
    status = {"cancel": "open", "refund": "shipped"}.get(kind)
    fitting = [i for i, order in records.orders.items() if status in (None, order["status"])]
    if not fitting:  # nobody has such an order, so somebody gets one
        fitting = [int(random.choice(list(records.orders)))]
        records.orders[fitting[0]]["status"] = status
    order_id = int(random.choice(fitting))
    order = records.orders[order_id]
    customer = order["customer_id"]
    name = records.customers[customer]
    found = [_call("find_customer", name=name), _call("list_orders", customer_id=customer)]
    if kind == "lookup":
        spent = sum(o["total"] for o in records.orders.values() if o["customer_id"] == customer)
        return (
            f"How much do the orders of {name} cost in total? Finish with that answer.",
            [*found, _call("finish", answer=spent)],
        )
    if kind == "cancel":
        return (
            f"{name} wants order {order_id} ({order['product']}) cancelled.",
            [
                *found,
                _call("cancel_order", order_id=order_id, reason="customer_request"),
                _call("finish", answer=None),
            ],
        )
    if kind == "refund":
        amount = int(random.integers(1, order["total"] + 1))
        return (
            f"Refund {amount} to {name} for order {order_id}.",
            [
                *found,
                _call("refund_order", order_id=order_id, amount=amount),
                _call("finish", answer=None),
            ],
        )
    return (
        f"{name} wants order {order_id} once more: same product, same quantity.",
        [
            *found,
            _call(
                "place_order",
                customer_id=customer,
                product=order["product"],
                quantity=order["quantity"],
            ),
            _call("finish", answer=None),
        ],
    )


def _menu(calls: list[Call], records: Records, random: np.random.Generator) -> list[Call]:
    """The right calls among wrong ones, shuffled."""
    wrong: list[Call] = []
    while len(wrong) < ACTIONS - len(calls):
        order_id = int(random.choice(list(records.orders)))
        customer = int(random.choice(list(records.customers)))
        candidate = [
            _call("find_customer", name=str(random.choice(NAMES))),
            _call("list_orders", customer_id=customer),
            _call("cancel_order", order_id=order_id, reason="out_of_stock"),
            _call("refund_order", order_id=order_id, amount=int(random.integers(1, 9))),
            _call(
                "place_order",
                customer_id=customer,
                product=str(random.choice(list(PRODUCTS))),
                quantity=int(random.integers(1, 11)),
            ),
            _call("finish", answer=int(random.integers(1, 999))),
        ][int(random.integers(6))]
        if candidate not in calls and candidate not in wrong:
            wrong.append(candidate)
    menu = [*calls, *wrong]
    return [menu[int(place)] for place in random.permutation(len(menu))]


class ToolCallFamily(Family[ToolCallConfig]):
    """See module."""

    name = EnvironmentType.TOOL_CALL
    summary = "Do what a customer asks by calling typed tools."
    config_type = ToolCallConfig

    def make(self, level: float, random: np.random.Generator) -> ToolTask:
        """See base class."""
        kind = str(random.choice(self.config.problem_types))
        return ToolTask(kind, level, self.config.fault_rate, random)
