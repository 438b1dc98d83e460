"""Samples of open exposures and clicks, with the label so far."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from consumers.joining.entries import OpenClick, OpenExposure
from weighting.sample import CopyKind, Sample, client_hash
from weighting.tasks import CLICK, PURCHASE, TaskName


class Labels:
    """Emission of first copies and late positives; without state of its own."""

    def __init__(self, windows_us: Mapping[TaskName, int], attribution_us: int) -> None:
        """Take the observation window of each task, and the attribution window of all."""
        # Samples are made from these by `replace`, a few fields at a time: building one from its
        # 20 keywords takes five times as long.
        self._shown = _template(CLICK, windows_us[CLICK], attribution_us)
        self._clicked = _template(PURCHASE, windows_us[PURCHASE], attribution_us)

    def first_copies(self, exposure: OpenExposure, now_us: int) -> list[Sample]:
        """Return the first copy of every candidate of an exposure, for the click task."""
        samples, clicked = [], exposure.clicked
        prefix = f"{exposure.position}/"
        negative = self._negative(exposure, now_us)
        index = 0
        for object_id, (text, attributes) in zip(exposure.hits, exposure.described, strict=True):
            if clicked and index in clicked:
                samples.append(self.click(exposure, index, CopyKind.FIRST, now_us))
                index += 1
                continue
            sample_id = f"{prefix}{index}/click/first"
            index += 1
            sample = replace(
                negative,
                sample_id=sample_id,
                item_id=object_id,
                text=text,
                attributes=attributes,
                position=index,
            )
            samples.append(sample)
        return samples

    def click(self, exposure: OpenExposure, index: int, copy_kind: CopyKind, now_us: int) -> Sample:
        """Return a positive of the click task."""
        click = exposure.clicked[index]
        text, attributes = exposure.described[index]
        shown = replace(
            self._negative(exposure, now_us),
            sample_id=f"{exposure.position}/{index}/click/{copy_kind}",
            copy_kind=copy_kind,
            item_id=exposure.hits[index],
            text=text,
            attributes=attributes,
            position=index + 1,
        )
        return replace(
            shown,
            label=1,
            event_time_us=max(exposure.time_us, click.time_us),
            delay_us=max(click.time_us - exposure.time_us, 0),
            inferred=click.inferred,
            positions=(exposure.position, click.position),
        )

    def purchase(self, click: OpenClick, copy_kind: CopyKind, now_us: int) -> Sample:
        """Return a sample of the purchase task, with the label so far."""
        clicked = replace(
            self._clicked,
            list_id=click.list_id,
            list_size=click.list_size,
            scenario=click.scenario,
            client=client_hash(click.client_id),
            query=click.query,
            item_id=click.object_id,
            text=click.text,
            attributes=click.attributes,
            position=click.ordinal,
        )
        so_far = replace(
            clicked,
            sample_id=f"{click.position}/purchase/{copy_kind}",
            copy_kind=copy_kind,
            shown_us=click.time_us,
            event_time_us=click.newest_us,
            elapsed_us=now_us - click.time_us,
            inferred=click.inferred,
            positions=click.sources,
        )
        purchase = click.purchase
        if purchase is None:
            return so_far
        return replace(
            so_far,
            label=1,
            event_time_us=max(click.newest_us, purchase.time_us),
            delay_us=max(purchase.time_us - click.time_us, 0),
            inferred=click.inferred or purchase.inferred,
            value=purchase.value,
            positions=(*click.sources, purchase.position),
        )

    def _negative(self, exposure: OpenExposure, now_us: int) -> Sample:
        """Return the fields that all samples of an exposure share."""
        return replace(
            self._shown,
            list_id=exposure.query_id,
            list_size=exposure.list_size,
            scenario=exposure.scenario,
            client=client_hash(exposure.client_id),
            query=exposure.query,
            shown_us=exposure.time_us,
            event_time_us=exposure.time_us,
            elapsed_us=now_us - exposure.time_us,
            positions=(exposure.position,),
        )


def _template(task: TaskName, window_us: int, attribution_us: int) -> Sample:
    return Sample(
        sample_id="",
        task=task,
        copy_kind=CopyKind.FIRST,
        label=0,
        list_id="",
        list_size=0,
        client=0,
        query="",
        item_id="",
        text="",
        attributes={},
        position=None,
        shown_us=0,
        event_time_us=0,
        elapsed_us=0,
        delay_us=None,
        window_us=window_us,
        attribution_us=attribution_us,
        inferred=False,
        positions=(),
    )
