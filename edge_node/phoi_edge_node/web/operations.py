"""Links, switches, dead letters; figures of use; the audit; reporting a problem."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from phoi_edge_node.desk import LinkKind
from phoi_edge_node.plain_words import explain
from phoi_edge_node.web.visitor import Administrator, PostingMember, SignedIn

router = APIRouter()

DEAD_LETTERS = 200  # of each destination
AUDIT_ENTRIES = 500

Target = Annotated[str, Form(pattern=r"^[A-Za-z0-9._:@+-]{1,208}$")]


@router.get("/operations")
def operations(member: SignedIn) -> Response:
    """Are the links up, what waits, what is paused, what was not delivered?"""
    desk = member.web.desk
    return member.page(
        "operations.html",
        health=desk.health(),
        links=desk.links(),
        switches=desk.switches(),
        reconciliations=desk.reconciliations(),
    )


@router.post("/operations/pause")
def pause(member: PostingMember, target: Target) -> Response:
    """Turn a switch off."""
    member.web.desk.pause(target, member.account)
    return RedirectResponse("/operations", 303)


@router.post("/operations/resume")
def resume(member: PostingMember, target: Target) -> Response:
    """Turn a switch on."""
    member.web.desk.resume(target, member.account)
    return RedirectResponse("/operations", 303)


@router.get("/deliveries")
def deliveries(member: SignedIn) -> Response:
    """What did not arrive, by destination, with the reason in plain words."""
    desk = member.web.desk
    links = {link.name: link for link in desk.links() if link.kind is LinkKind.DESTINATION}
    lanes = [(lane, links.get(lane.destination)) for lane in desk.dead_letters(DEAD_LETTERS)]
    return member.page("deliveries.html", lanes=lanes, explain=explain)


@router.post("/deliveries/resend-dead")
def resend_dead(member: PostingMember, destination: Target) -> Response:
    """Send all dead letters of a destination again."""
    member.web.desk.resend_dead(destination, member.account)
    return RedirectResponse("/deliveries", 303)


@router.post("/deliveries/{delivery_id}/resend")
def resend(
    member: PostingMember,
    delivery_id: int,
    after: Annotated[Literal["/operations", "/deliveries"], Form()] = "/operations",
) -> Response:
    """Send the same bytes again."""
    member.web.desk.resend(delivery_id, member.account)
    return RedirectResponse(after, 303)


@router.get("/kpis")
def kpis(member: SignedIn) -> Response:
    """How Phoi is used here."""
    return member.page("kpis.html", kpis=member.web.desk.kpis())


@router.get("/audit")
def audit(member: Administrator) -> Response:
    """Who saw and did what."""
    member.web.desk.log_access(member.account.username, "view_audit", None, "")
    return member.page("audit.html", entries=member.web.desk.audit(AUDIT_ENTRIES))


@router.get("/report")
def show_report(member: SignedIn) -> Response:
    """The form."""
    return member.page("report.html", reference="")


@router.post("/report")
def report(
    member: PostingMember, text: Annotated[str, Form(min_length=1, max_length=4000)]
) -> Response:
    """Store the report and show its reference."""
    reference = member.web.desk.report_problem(text, member.account)
    return member.page("report.html", reference=reference)
