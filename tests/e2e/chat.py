"""The chat page in the words of its users."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

#: Milliseconds; much, for machines that are busy with other tests.
PATIENCE = 30_000
expect.set_options(timeout=PATIENCE)


class Chat:
    """What can be done on the page, and what is seen there."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.input = page.get_by_label("Message", exact=True)
        self.stop = page.get_by_role("button", name="Stop", exact=True)
        self.users = page.locator(".entry.user .bubble")
        self.answers = page.locator(".entry.answer")
        self.banner = page.locator(".banner")

    @property
    def thread(self) -> str:
        """Id of the thread in the address."""
        found = re.search(r"/t/([^/?#]+)$", self.page.url)
        assert found, self.page.url
        return found[1]

    def say(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def ask(self, text: str) -> Locator:
        """Say something and wait for the whole answer; returns it."""
        number = self.answers.count()
        self.say(text)
        self.idle(number + 1)
        return self.answers.last

    def idle(self, answers: int | None = None, timeout: float = PATIENCE) -> None:
        """Wait until nothing is being written (milliseconds at most)."""
        if answers is not None:
            expect(self.answers).to_have_count(answers, timeout=timeout)
        expect(self.stop).to_have_count(0, timeout=timeout)
        expect(self.page.locator(".streaming")).to_have_count(0, timeout=timeout)

    def has_text(self, text: str) -> None:
        """Wait until the last answer shows this."""
        expect(self.answers.last.locator(".md")).to_contain_text(text)

    def shown(self) -> str:
        """The text of the last answer, as far as it is shown."""
        return self.answers.last.locator(".md").inner_text().strip()


def words(count: int) -> str:
    """What ``count N`` answers."""
    return " ".join(f"w{number}" for number in range(count))
