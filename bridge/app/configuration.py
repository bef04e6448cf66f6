"""The one list of what is wrong with a deployment's configuration: settings, routes and
user code, whatever their kind. `bridge serve` starts if it has no mistake; `bridge
check` prints it. Nothing here opens a connection or calls a function of the user.
"""

from dataclasses import dataclass

from bridge.app import settings_report
from bridge.app.settings import Finding, Settings, SettingsReading, export
from bridge.app.startup import UserCode, read_user_code


@dataclass(frozen=True, slots=True)
class FoundConfiguration:
    """As far as it can be used, and what is wrong with it."""

    reading: SettingsReading
    user_code: UserCode | None
    """None: the default agent cannot be loaded."""
    of_settings: list[Finding]
    of_code: list[Finding]

    @property
    def settings(self) -> Settings:
        return self.reading.settings

    @property
    def problems(self) -> list[Finding]:
        """Mistakes and warnings."""
        return [it for it in self.of_settings + self.of_code if it.level != "ok"]

    @property
    def mistakes(self) -> list[Finding]:
        return [it for it in self.problems if it.level == "error"]


def read_configuration(reading: SettingsReading) -> FoundConfiguration:
    """Imports the user's code, which finds in the environment what .env holds."""
    export(reading.file)
    of_settings = settings_report.report(reading)
    wrong = {it.name.removesuffix("_FILE") for it in reading.mistakes}
    user_code, found = read_user_code(reading.settings)
    found = settings_report.not_consequences(found, wrong)
    if user_code is not None:
        for text in user_code.routes.warnings:
            path = f"{reading.settings.routes}:"
            line, _, warning = text.removeprefix(path).partition(": ")
            found.append(
                Finding("warning", "BRIDGE_ROUTES", warning, place=path + line)
            )
    return FoundConfiguration(
        reading, user_code, of_settings, [reading.placed(it) for it in found]
    )
