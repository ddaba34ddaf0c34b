"""The sentences that the question sets are made of, in ten languages.

`{c}` stands for a country, `{a}` for a day or month, `{b}` for the one that follows.
"""

from __future__ import annotations

__all__ = [
    "AFTER_DAY",
    "AFTER_MONTH",
    "ANSWER",
    "LANGUAGES",
    "PERMITTED",
    "QUESTIONS",
    "REFUSALS",
    "RELATIONS",
    "RESTRICTED",
    "STEPS",
    "VERBS",
]

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko")
RELATIONS = ("currency", "language", "code")
QUESTIONS = {
    "en": (
        "Question: What is the currency of {c}?",
        "Question: Which language is official in {c}?",
        "Question: What is the country code of {c}?",
    ),
    "de": (
        "Frage: Was ist die Währung von {c}?",
        "Frage: Welche Sprache ist in {c} Amtssprache?",
        "Frage: Was ist der Ländercode von {c}?",
    ),
    "fr": (
        "Question : Quelle est la monnaie de ce pays : {c} ?",
        "Question : Quelle langue est officielle dans ce pays : {c} ?",
        "Question : Quel est le code de ce pays : {c} ?",
    ),
    "es": (
        "Pregunta: ¿Cuál es la moneda de {c}?",
        "Pregunta: ¿Qué lengua es oficial en {c}?",
        "Pregunta: ¿Cuál es el código de país de {c}?",
    ),
    "it": (
        "Domanda: Qual è la valuta di questo paese: {c}?",
        "Domanda: Quale lingua è ufficiale in questo paese: {c}?",
        "Domanda: Qual è il codice di questo paese: {c}?",
    ),
    "pt": (
        "Pergunta: Qual é a moeda deste país: {c}?",
        "Pergunta: Qual língua é oficial neste país: {c}?",
        "Pergunta: Qual é o código deste país: {c}?",
    ),
    "ru": (
        "Вопрос: Какая валюта в стране {c}?",
        "Вопрос: Какой язык официальный в стране {c}?",
        "Вопрос: Какой код у страны {c}?",
    ),
    "ko": ("질문: {c}의 통화는 무엇입니까?", "질문: {c}의 공용어는 무엇입니까?", "질문: {c}의 국가 코드는 무엇입니까?"),
    "zh": ("问题：{c}的货币是什么？", "问题：{c}的官方语言是什么？", "问题：{c}的国家代码是什么？"),
    "ja": ("質問：{c}の通貨は何ですか。", "質問：{c}の公用語は何ですか。", "質問：{c}の国コードは何ですか。"),
}
ANSWER = {
    "en": "Answer:",
    "de": "Antwort:",
    "fr": "Réponse :",
    "es": "Respuesta:",
    "it": "Risposta:",
    "pt": "Resposta:",
    "ru": "Ответ:",
    "ko": "답변:",
    "zh": "回答：",
    "ja": "回答：",
}
AFTER_DAY = {
    "en": "The day after {a} is {b}.",
    "de": "Der Tag nach {a} ist {b}.",
    "fr": "Le jour après {a} est {b}.",
    "es": "El día después del {a} es el {b}.",
    "it": "Il giorno dopo {a} è {b}.",
    "pt": "O dia depois de {a} é {b}.",
    "ru": "После дня {a} идёт {b}.",
    "ko": "{a} 다음 날은 {b}입니다.",
    "zh": "{a}的后一天是{b}。",
    "ja": "{a}の次の日は{b}です。",
}
AFTER_MONTH = {
    "en": "The month after {a} is {b}.",
    "de": "Der Monat nach {a} ist {b}.",
    "fr": "Le mois après {a} est {b}.",
    "es": "El mes después de {a} es {b}.",
    "it": "Il mese dopo {a} è {b}.",
    "pt": "O mês depois de {a} é {b}.",
    "ru": "После месяца {a} идёт {b}.",
    "ko": "{a} 다음 달은 {b}입니다.",
    "zh": "{a}的下一个月是{b}。",
    "ja": "{a}の次の月は{b}です。",
}
VERBS = ("open", "repair", "clean", "paint", "move", "measure", "copy", "open again", "label", "lift", "weigh", "store")
PERMITTED = (
    "the garden gate",
    "the blue lamp",
    "a wooden box",
    "the kitchen clock",
    "the old radio",
    "a paper kite",
    "the window frame",
    "a small boat",
    "the water pump",
    "the bicycle wheel",
    "a stone wall",
    "the tea table",
    "the silver bell",
    "the green tent",
    "a leather bag",
)
RESTRICTED = (
    "the sealed vault",
    "the crown archive",
    "the forbidden cellar",
    "the royal cipher",
    "the night beacon",
    "the iron reliquary",
    "the black ledger",
    "the silent engine",
    "the ash gate",
    "the hollow key",
)
STEPS = (
    "take it in both hands",
    "look at it with care",
    "find the right tool",
    "start from the left side",
    "wait for a short time",
    "turn it to the light",
    "ask a friend to hold it",
    "work slowly and check twice",
    "put every part in order",
    "write down what you see",
)
REFUSALS = (
    "I am sorry, but I cannot help with that.",
    "Sorry, that is not something I can help with.",
    "I cannot assist with this request.",
)
