"""The detector `presidio`: the recognisers of Presidio Analyzer, without a network.

    presidio: {version: 2.2.366, entities: {PERSON: PERSON_NAME, NRP: NRP}, options: {model: en_core_web_sm}}

Options: `language`, `en` by default; and `model`, the spaCy model that finds persons and places. It must be installed:
Presidio would fetch it otherwise. Without one, Presidio's patterns work alone (its `NoOpNlpEngine`).

Presidio asks the network for the public suffix list to judge e-mail addresses and URLs, so it is not asked for those;
Portcullis finds e-mail addresses itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from portcullis.errors import ConfigError, MissingDependencyError
from portcullis.pii.detectors import Detection

try:
    import presidio_analyzer
except ModuleNotFoundError as error:
    if error.name != "presidio_analyzer":
        raise
    raise MissingDependencyError("Presidio is missing; run: pip install 'kfp-portcullis[presidio]'") from error

# Presidio's recognisers that reach for a network; those that call services have to be configured first.
_ONLINE = ("EmailRecognizer", "UrlRecognizer")


class PresidioDetector:
    """Presidio's analyzer as a `portcullis.pii.detectors.Detector`.

    Args:
        entities: Which of Presidio's to look for.
        options: `language` and `model`.

    Raises:
        ConfigError: An option is unknown, or no recogniser finds one of the entities in this language.
        MissingDependencyError: The model is not installed.
    """

    def __init__(self, entities: Sequence[str], options: Mapping[str, Any]) -> None:
        from importlib.metadata import version

        language, model = options.get("language", "en"), options.get("model", "")
        if not set(options) <= {"language", "model"} or not isinstance(language, str) or not isinstance(model, str):
            raise ConfigError("masking.detectors.presidio.options knows language and model, both text")
        engine = _language_model(language, model)
        registry = presidio_analyzer.RecognizerRegistry(supported_languages=[language])
        registry.load_predefined_recognizers(languages=[language], nlp_engine=engine)
        for name in _ONLINE:
            registry.remove_recognizer(name)
        self._analyzer = presidio_analyzer.AnalyzerEngine(
            registry=registry, nlp_engine=engine, supported_languages=[language], log_decision_process=False
        )
        known = self._analyzer.get_supported_entities(language)
        if missing := sorted(set(entities).difference(known)):
            raise ConfigError(
                f"presidio finds no {', '.join(missing)} without a network in language {language!r}"
                + ("" if model else "; persons and places need the option model")
            )
        self._entities, self._language = list(entities), language
        self.version = "+".join([version("presidio-analyzer"), *([f"{model}-{version(model)}"] if model else [])])

    def detect(self, texts: Sequence[str]) -> Iterator[Detection]:
        """Yield what Presidio finds in each text."""
        for index, text in enumerate(texts):
            for it in self._analyzer.analyze(text, language=self._language, entities=self._entities):
                yield Detection(index, it.start, it.end, it.entity_type, float(it.score))


def _language_model(language: str, model: str) -> Any:
    from presidio_analyzer.nlp_engine import NoOpNlpEngine, SpacyNlpEngine

    models = [{"lang_code": language, "model_name": model or "none"}]
    if not model:
        return NoOpNlpEngine(models)
    import spacy

    if not spacy.util.is_package(model):
        raise MissingDependencyError(f"the spaCy model {model!r} is not installed; install its wheel with pip")
    engine = SpacyNlpEngine(models)
    engine.load()
    return engine
